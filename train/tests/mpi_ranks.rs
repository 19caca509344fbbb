//! Several ranks, as processes under `mpirun`: `tests/with_mpi.sh` starts it. Without arguments all
//! must go well; with one, rank 1 goes wrong in the way that it names, and the others must not wait
//! for it.
#![allow(missing_docs, clippy::print_stdout, reason = "a program of tests")]

#[allow(dead_code, unused_imports, reason = "the checks of other harnesses")]
mod checks;
#[allow(dead_code, reason = "what other harnesses use")]
mod eve_model;
#[allow(dead_code, reason = "what other harnesses use")]
mod fixture;
mod shared_experts;
mod shared_runs;

use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use train::collective::{Collective, Mpi};

/// Values that are added up to see how long it takes: 100 MB.
const MANY: usize = 25_000_000;

fn main() -> ExitCode {
    let ranks = Rc::new(Mpi::start().expect("MPI starts"));
    let wrong = std::env::args().nth(1);
    match wrong.as_deref() {
        None | Some("well") => well(&ranks),
        Some(how) => return goes_wrong(how, &ranks),
    }
    ranks.finish().expect("all come to the end");
    ExitCode::SUCCESS
}

fn well(own: &Rc<Mpi>) {
    let ranks: &Mpi = own;
    let say = |what: String| {
        if ranks.is_first() {
            println!("{what}");
        }
    };
    say(format!("{} ranks", ranks.size()));
    checks::operations_give_what_one_process_computes(ranks);
    checks::tensors_are_summed_in_their_dtype(ranks);
    checks::shards_are_updated_as_the_whole(ranks);
    say("operations give what one process computes".into());
    for architecture in fixture::ARCHITECTURES {
        let error = checks::objectives_learn_what_one_process_learns(ranks, architecture);
        say(format!(
            "{architecture}: every objective learns what one process learns, but for {error:.1e}"
        ));
    }
    let sharing: Rc<dyn Collective> = Rc::clone(own) as Rc<dyn Collective>;
    let error = shared_experts::ranks_that_share_experts_learn_what_one_process_learns(&sharing);
    say(format!(
        "ranks that share experts learn what one process learns, but for {error:.1e}"
    ));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mpi_ranks");
    if ranks.is_first() && folder.exists() {
        std::fs::remove_dir_all(&folder).expect("removed");
    }
    ranks.barrier().expect("all are there");
    let error = shared_runs::a_run_that_shares_experts_ends_where_that_of_one_process_ends(
        &sharing,
        &folder.join("experts"),
    );
    say(format!(
        "so does a run whose ranks share experts, but for {error:.1e}"
    ));
    let error = shared_runs::a_run_ends_where_that_of_one_process_ends(ranks, &folder);
    say(format!(
        "a run ends where that of one process ends, but for {error:.1e}"
    ));
    let mut values = vec![1.0; MANY];
    let times = (0..5).map(|_| {
        let started = Instant::now();
        ranks.sum(&mut values).expect("a sum");
        started.elapsed().as_secs_f64()
    });
    let best = times.fold(f64::INFINITY, f64::min);
    say(format!("100 MB are added up in {:.0} ms", 1e3 * best));
}

fn goes_wrong(how: &str, ranks: &Mpi) -> ExitCode {
    if ranks.rank() == 1 {
        match how {
            "panics" => panic!("rank 1 panics"),
            "leaves" => return ExitCode::FAILURE,
            "exits" => std::process::exit(3),
            "aborts" => std::process::abort(),
            "differs" => {
                let error = ranks
                    .sum(&mut [0.0; 2])
                    .expect_err("the others do something else");
                println!("rank 1: {error}");
                return ExitCode::FAILURE;
            }
            other => panic!("rank 1 cannot go wrong by `{other}`"),
        }
    }
    // If it goes wrong by another operation, this tells; else this waits.
    if let Err(error) = ranks.sum(&mut [0.0; 3]) {
        println!("rank 0: {error}");
    }
    // Whoever gets here without being ended by the others' failure has not heard of it.
    std::thread::sleep(Duration::from_secs(600));
    ExitCode::SUCCESS
}
