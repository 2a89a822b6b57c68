//! `coordinator serve` on a bucket that cannot be used: the exit code says who has to do something, and nobody sees the key.

use crate::toy::{Place, Ran};

fn serve(place: &Place, store: &str, key: Option<&str>) -> Ran {
    let listen = ["--listen", "127.0.0.1:0", "--metrics-listen", "none", "--state", "state"];
    let args = [&["coordinator", "serve", "--config", "s3.toml", "--store", store], &listen[..]].concat();
    let mut command = place.command(&args);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        command.env_remove(name);
    }
    if let Some(secret) = key {
        command.env("AWS_ACCESS_KEY_ID", "somebody").env("AWS_SECRET_ACCESS_KEY", secret);
    }
    command.output().expect("runs").into()
}

#[test]
fn a_bucket_that_cannot_be_used_ends_serve_with_cause_and_remedy() {
    let place = Place::empty();
    // A port that nobody listens on.
    place.write("s3.toml", b"store_endpoint = \"http://127.0.0.1:1\"\n");
    for (store, key, code, words) in [
        ("s3://bucket/prefix", None, 2, "AWS_ACCESS_KEY_ID"),
        ("gs://bucket/prefix", Some("hush-hush"), 2, "setting `store`"),
        ("s3://Bucket/prefix", Some("hush-hush"), 2, "setting `store`"),
        ("s3://bucket/prefix", Some("hush-hush"), 3, "http://127.0.0.1:1 cannot be reached"),
    ] {
        let ran = serve(&place, store, key).expect(code);
        assert!(ran.stderr.contains(words), "{store}: {}", ran.stderr);
        assert!(!ran.stderr.contains("hush-hush") && !ran.stdout.contains("hush-hush"), "{}", ran.stderr);
    }
}
