//! Large blobs over a network that fails in the middle of them: they go on where they stopped, and nobody takes what is too large.

use std::sync::Arc;
use std::time::Duration;

use crate::loopback::{PATIENCE, admissions, config, joined, prove};
use crate::proxy::Proxy;
use crate::toy::{Toy, expected_proof, spec};
use obelysk_coordinator::{Coordinator, CoordinatorConfig};
use obelysk_node::{IdentityStore, Node, NodeConfig};

const MIB: u64 = 1 << 20;

/// The node's results of 24 MiB are cut after two thirds of the way; what arrived before is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_cut_in_the_middle_goes_on_where_it_was() {
    let big = Arc::new(Toy { size: 24 << 20 });
    let config = CoordinatorConfig { lease_ms: 30_000, away_grace_ms: 20_000, idle_timeout_ms: 600, ..config() };
    let handle = Coordinator::start(config, admissions(), big.clone(), None).await.expect("starts");
    let proxy = Proxy::start(handle.local_address()).await;
    let mut token = handle.invite(PATIENCE, 1).expect("made");
    token.addresses = vec![proxy.address.to_string()];
    let place = tempfile::tempdir().expect("folder");
    let store = IdentityStore::folder(&place.path().join("n")).expect("free");
    let node = tokio::spawn(Node::run_until(NodeConfig::new("far"), (store, Some(token)), big.clone(), std::future::pending()));
    joined(&handle, 1).await;
    let spec = spec(2, 77);
    let proving = prove(&handle, spec.clone());
    let cutting = async {
        while proxy.relayed()[0] < 16 * MIB {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        proxy.swallow(true);
        let before = proxy.relayed()[0];
        // Longer than the patience of both sides.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        proxy.swallow(false);
        before
    };
    let ((result, _), before) = tokio::join!(proving, cutting);
    assert!(result.expect("proved").proof == expected_proof(&spec, big.size));
    let [up, _] = proxy.relayed();
    // Two results of 24 MiB and small ones. From the beginning again, it would be 16 MiB more.
    assert!(up > 48 * MIB && up < 57 * MIB, "{up} bytes went up, {before} of them before the cut");
    handle.shutdown().await;
    let _ = tokio::time::timeout(PATIENCE, node).await;
}

/// A result larger than the coordinator takes is refused by name, and by both it costs only the job.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_before_it_travels() {
    let big = Arc::new(Toy { size: 3 << 20 });
    let config = CoordinatorConfig { max_blob_bytes: 2 * MIB, ..config() };
    let handle = Coordinator::start(config, admissions(), big.clone(), None).await.expect("starts");
    let proxy = Proxy::start(handle.local_address()).await;
    let mut token = handle.invite(PATIENCE, 1).expect("made");
    token.addresses = vec![proxy.address.to_string()];
    let node = Node::run_until(NodeConfig::new("n"), (IdentityStore::Memory, Some(token)), big, std::future::pending());
    let node = tokio::spawn(node);
    joined(&handle, 1).await;
    let error = prove(&handle, spec(1, 5)).await.0.expect_err("too large").to_string();
    assert!(error.contains("exceeds the limit of 2097152"), "{error}");
    assert!(proxy.relayed()[0] < MIB, "refused before it travelled");
    handle.shutdown().await;
    let _ = tokio::time::timeout(PATIENCE, node).await;
}
