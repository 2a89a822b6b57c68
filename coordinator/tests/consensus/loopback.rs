//! Three members over QUIC with logs on disk: the leader is killed, another leads within seconds, who was gone catches up.

use crate::board::Board;
use crate::seat::{Cluster, Seat, keep, leader, until};
use obelysk_coordinator::consensus::raft::Begin;
use obelysk_coordinator::consensus::raft::core::Pace;
use obelysk_coordinator::consensus::raft::member::ChangeError;
use obelysk_coordinator::consensus::{Consensus, ProposeError, Role};

async fn three(cluster: &Cluster) -> Vec<Seat> {
    let mut seats = vec![cluster.seat(Begin::First(0))];
    keep(&seats, 0..10).await;
    for _ in 0..2 {
        let seeds = seats.iter().map(Seat::me).collect();
        let seat = cluster.seat(Begin::Join(seeds));
        let (n, _) = leader(&seats).await;
        seats[n].up().add(seat.me()).await.expect("added");
        seats.push(seat);
    }
    seats
}

fn agree(cluster: &Cluster) {
    let board: &Board = &cluster.board.lock().expect("no panic");
    assert_eq!(board.broken, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_within_seconds_and_comes_back() {
    let cluster = Cluster::new(Pace::default(), 0);
    let mut seats = three(&cluster).await;
    let mut kept = 10;
    for round in 0..4 {
        let (n, term) = leader(&seats).await;
        keep(&seats, kept..kept + 50).await;
        kept += 50;
        seats[n].kill();
        let begun = std::time::Instant::now();
        let (next, later) = leader(&seats).await;
        println!("round {round}: another leader after {:.2} s", begun.elapsed().as_secs_f64());
        assert!(begun.elapsed().as_secs() < 5 && next != n && later > term, "{begun:?}");
        keep(&seats, kept..kept + 50).await;
        kept += 50;
        seats[n].sit(&cluster);
        let all = kept as usize;
        let took = until("catching up", || seats[n].pages() == all).await;
        println!("round {round}: caught up after {:.2} s", took.as_secs_f64());
    }
    until("all have all", || seats.iter().all(|s| s.pages() == kept as usize)).await;
    agree(&cluster);
}

/// The log does not reach back to where the member was, and the state is larger than a frame.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_gone_for_long_is_sent_the_state() {
    let pace = Pace { compact_entries: 20, keep_entries: 5, ..Pace::default() };
    let cluster = Cluster::new(pace, 3 << 20);
    let mut seats = three(&cluster).await;
    let (n, _) = leader(&seats).await;
    let gone = (n + 1) % 3;
    seats[gone].kill();
    for batch in 0..10 {
        keep(&seats, 10 + batch * 20..30 + batch * 20).await;
    }
    seats[gone].sit(&cluster);
    until("catching up", || seats[gone].pages() == 210).await;
    // Its own at the start, and the leader's.
    assert!(seats[gone].restored() >= 2, "{:?}", seats[gone].progress);
    keep(&seats, 210..220).await;
    // Total loss of power.
    seats.iter_mut().for_each(Seat::kill);
    seats.iter_mut().for_each(|s| s.sit(&cluster));
    keep(&seats, 220..230).await;
    until("all have all", || seats.iter().all(|s| s.pages() == 230)).await;
    agree(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_and_members_go_only_while_a_majority_lives() {
    let cluster = Cluster::new(Pace::default(), 0);
    let mut seats = three(&cluster).await;
    let (n, term) = leader(&seats).await;
    let (a, b) = ((n + 1) % 3, (n + 2) % 3);
    seats[n].up().transfer(seats[a].me().id()).await.expect("begun");
    until("leadership moves", || seats[a].leads().is_some()).await;
    let stale = seats[n].up().propose(term, vec![vec![1]]).await;
    assert!(matches!(stale, Err(ProposeError::NotLeader { .. })), "{stale:?}");
    until(
        "the others know",
        || matches!(&*seats[n].up().role().borrow(), Role::Follower { leader: Some(place) } if *place == seats[a].me().service),
    )
    .await;
    let me = seats[a].me().id();
    assert_eq!(seats[a].up().remove(me).await, Err(ChangeError::Itself));
    let lost = seats[b].me().id();
    seats[b].kill();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let other = seats[n].me().id();
    let refused = seats[a].up().remove(other).await;
    assert_eq!(refused, Err(ChangeError::NoMajority { voters: 2, live: 1, needed: 2 }));
    seats[a].up().remove(lost).await.expect("two of two live");
    let view = seats[a].up().view().await.expect("runs");
    assert_eq!(view.members.len(), 2);
    keep(&seats, 10..20).await;
    agree(&cluster);
}

/// A term has one brain: when that ends, the term ends.
#[tokio::test(flavor = "multi_thread")]
async fn who_steps_down_leads_in_that_term_no_more() {
    let cluster = Cluster::new(Pace::default(), 0);
    let alone = vec![cluster.seat(Begin::First(7))];
    let (_, term) = leader(&alone).await;
    assert!(term > 7, "terms go on above those before the log");
    alone[0].up().step_down(term);
    until("another term", || alone[0].leads().is_some_and(|later| later > term)).await;
    let stale = alone[0].up().propose(term, vec![vec![1]]).await;
    assert!(matches!(stale, Err(ProposeError::NotLeader { .. })), "{stale:?}");

    let cluster = Cluster::new(Pace::default(), 0);
    let seats = three(&cluster).await;
    let (n, term) = leader(&seats).await;
    seats[n].up().step_down(term);
    until("another term", || seats.iter().filter_map(Seat::leads).any(|later| later > term)).await;
    let (n, later) = leader(&seats).await;
    // Of a term that is over: nothing.
    seats[n].up().step_down(term);
    keep(&seats, 10..20).await;
    assert!(seats.iter().filter_map(Seat::leads).all(|now| now >= later));
    agree(&cluster);
}
