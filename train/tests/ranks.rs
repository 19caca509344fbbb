//! Several ranks, as threads.

use std::time::Duration;

use train::collective::rendezvous::Rendezvous;
use train::collective::{Alone, Collective, Fault, Shards};

use crate::checks::{self, Beyond};
use crate::fixture::ARCHITECTURES;
use crate::shared_runs;
use crate::threads::Threads;

#[test]
fn operations_give_what_one_process_computes() {
    checks::operations_give_what_one_process_computes(&Alone);
    for n_ranks in [2, 3] {
        Threads::run(n_ranks, |rank| {
            checks::operations_give_what_one_process_computes(rank);
        });
    }
}

#[test]
fn tensors_are_summed_in_their_dtype() {
    Threads::run(3, |rank| checks::tensors_are_summed_in_their_dtype(rank));
}

#[test]
fn every_objective_learns_on_two_ranks_what_it_learns_on_one() {
    for architecture in ARCHITECTURES {
        Threads::run(2, |rank| {
            checks::objectives_learn_what_one_process_learns(rank, architecture)
        });
    }
}

#[test]
fn every_objective_learns_on_four_ranks_what_it_learns_on_one() {
    Threads::run(4, |rank| {
        checks::objectives_learn_what_one_process_learns(rank, "all_moe")
    });
}

#[test]
fn padding_behind_the_longest_text_changes_nothing_that_is_learned() {
    for architecture in ARCHITECTURES {
        checks::objectives_learn_what_one_process_learns(&Alone, architecture);
    }
}

#[test]
fn a_batch_in_parts_learns_what_it_learns_at_once() {
    for of in [
        Beyond::multiway("all_moe"),
        Beyond::multiway("ufo"),
        Beyond::zerovl(),
    ] {
        checks::parts_learn_what_the_whole_learns(&Alone, &of);
        Threads::run(2, |rank| {
            checks::parts_learn_what_the_whole_learns(rank, &of)
        });
    }
}

#[test]
fn a_run_of_two_ranks_ends_where_that_of_one_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    Threads::run(2, |rank| {
        shared_runs::a_run_ends_where_that_of_one_process_ends(rank, folder.path())
    });
}

#[test]
fn shards_are_updated_as_the_whole() {
    for n_ranks in [1, 2, 3, 5] {
        Threads::run(n_ranks, |rank| {
            checks::shards_are_updated_as_the_whole(rank)
        });
    }
}

#[test]
fn every_number_is_owned_by_one_rank_and_none_owns_two_more_than_another() {
    for lengths in [&[][..], &[0], &[5], &[3, 0, 0, 4, 1], &[1, 1], &[100, 7, 0]] {
        for n_ranks in 1..9 {
            let shards = Shards::new(lengths.iter().copied(), n_ranks);
            assert_eq!(shards.len(), lengths.iter().sum::<usize>());
            let mut owned: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![0; n]).collect();
            let (mut end, mut sizes) = (0, Vec::new());
            for rank in 0..n_ranks {
                let range = shards.range(rank);
                assert_eq!(range.start, end, "ranges follow one another");
                end = range.end;
                sizes.push(range.len());
                let mut filled = 0;
                for part in shards.parts(rank) {
                    assert_eq!(part.of_shard.start, filled, "parts follow one another");
                    assert_eq!(part.of_shard.len(), part.of_parameter.len());
                    assert!(!part.of_shard.is_empty());
                    filled = part.of_shard.end;
                    for count in &mut owned[part.parameter][part.of_parameter] {
                        *count += 1;
                    }
                }
                assert_eq!(filled, range.len(), "parts make up the range");
            }
            assert_eq!(end, shards.len());
            assert!(owned.iter().flatten().all(|&count| count == 1));
            let (least, most) = (sizes.iter().min(), sizes.iter().max());
            assert!(
                most.expect("a rank") - least.expect("a rank") <= 1,
                "{sizes:?}"
            );
        }
    }
}

/// A free port of this machine, by letting the system choose one.
fn address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn the_first_rank_hands_its_message_to_all() {
    let address = address();
    let message: Vec<u8> = (0..=200).collect();
    std::thread::scope(|scope| {
        let started: Vec<_> = [2, 0, 1]
            .into_iter()
            .map(|rank| {
                let meeting = Rendezvous::new(rank, 3, &*address);
                let own = if rank == 0 { &message[..] } else { &[] };
                scope.spawn(move || meeting.hand_out(own))
            })
            .collect();
        // Somebody who is no rank is let go.
        let stranger = std::net::TcpStream::connect(&address);
        drop(stranger);
        for rank in started {
            assert_eq!(rank.join().expect("no panic").expect("a message"), message);
        }
    });
}

#[test]
fn ranks_that_do_not_come_are_counted() {
    let meeting = Rendezvous::new(0, 3, address()).patient(Duration::from_millis(50));
    let error = meeting.hand_out(b"id");
    assert!(
        matches!(error, Err(Fault::Missing { n_missing: 2, .. })),
        "{error:?}"
    );
    let meeting = Rendezvous::new(1, 3, address()).patient(Duration::from_millis(50));
    let error = meeting.hand_out(&[]);
    assert!(
        matches!(error, Err(Fault::Meeting { rank: 1, .. })),
        "{error:?}"
    );
}

#[test]
fn a_rank_that_comes_twice_or_from_another_run_is_refused() {
    for (rank, n_ranks) in [(1, 4), (5, 3), (0, 3)] {
        let address = address();
        std::thread::scope(|scope| {
            let first = Rendezvous::new(0, 3, &*address).patient(Duration::from_secs(20));
            let first = scope.spawn(move || first.hand_out(b"id"));
            // As another rank than the first of `n_ranks`, by its own words.
            let greeting = [
                &b"vlmerge\x01"[..],
                &(rank as u32).to_le_bytes(),
                &(n_ranks as u32).to_le_bytes(),
            ];
            let mut stream = loop {
                match std::net::TcpStream::connect(&address) {
                    Ok(stream) => break stream,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            };
            std::io::Write::write_all(&mut stream, &greeting.concat()).expect("said");
            let error = first.join().expect("no panic");
            assert!(
                matches!(&error, Err(Fault::Stranger { rank: r, n_ranks: n, .. }) if (*r, *n) == (rank, n_ranks)),
                "{error:?}"
            );
        });
    }
}

fn of_variables(variables: &[(&str, &str)]) -> Result<Option<Rendezvous>, Fault> {
    Rendezvous::from_variables(|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn variables_say_who_meets_where() {
    assert_eq!(of_variables(&[]).expect("none"), None);
    let known = [
        ("WORLD_SIZE", "4"),
        ("RANK", "3"),
        ("MASTER_ADDR", "node1"),
        ("MASTER_PORT", "29500"),
    ];
    let expected = Rendezvous::new(3, 4, "node1:29500");
    assert_eq!(of_variables(&known).expect("known"), Some(expected));
    let mut v6 = known;
    v6[2].1 = "::1";
    let found = of_variables(&v6).expect("known").expect("several");
    assert_eq!(found.address(), "[::1]:29500");
    let wrong = [
        (0, "none", "WORLD_SIZE"),
        (0, "0", "WORLD_SIZE"),
        (1, "4", "RANK"),
        (2, "", "MASTER_ADDR"),
        (3, "70000", "MASTER_PORT"),
    ];
    for (at, value, culprit) in wrong {
        let mut variables = known;
        variables[at].1 = value;
        let error = of_variables(&variables);
        assert!(
            matches!(&error, Err(Fault::Variable { name, .. }) if *name == culprit),
            "{error:?}"
        );
    }
}

#[test]
fn one_process_is_alone() {
    assert!(Alone.is_first());
    Alone.finish().expect("nobody to wait for");
    let found = of_variables(&[("WORLD_SIZE", "1"), ("RANK", "0")]);
    assert_eq!(
        found.expect("known").map(|meeting| meeting.n_ranks()),
        Some(1)
    );
}
