//! Runs whose ranks share experts out: the part of each rank, the messages, the states.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::rc::Rc;

use candle_core::Device;
use evaluate::nn::Pass;
use evaluate::ranks::ExpertShare;
use merge::layouts::EveTask;
use merge::progress::Silent;
use train::collective::{Alone, Collective};
use train::run::{Ended, TrainPlan, Trainer, Where};

use crate::counted::Counted;
use crate::eve_model::{NOTHING, images, open_share};
use crate::resharding::{l2, run_with, values, weights};
use crate::shared_runs::eve;
use crate::threads::Threads;

/// Of tensors by L2, relative to the tensor or, for smaller ones, to a share of the largest of their kind: gradients that
/// are nothing but rounding have moments, too.
const TOLERANCE: f64 = 1e-5;

/// That share.
const FLOOR: f64 = 1e-3;

/// Numbers of an experts' variables in [`eve`]'s model: five networks of 32 to 128 and back in each of two mixtures.
const N_OF_EXPERT: u64 = 2 * 32 * 128 + 128 + 32;

/// A rank of several that share experts, or one process.
fn together(n_ranks: usize, run: impl Fn(&Rc<dyn Collective>) + Sync) {
    Threads::run_owned(n_ranks, |rank| {
        let rank: Rc<dyn Collective> = Rc::new(rank);
        run(&rank);
    });
}

fn place<'a>(
    folder: &'a Path,
    ranks: &'a dyn Collective,
    experts: Option<Rc<dyn Collective>>,
) -> Where<'a> {
    Where {
        folder,
        device: Device::Cpu,
        collective: ranks,
        experts,
        progress: &Silent,
    }
}

fn compare(found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>) {
    assert!(found.keys().eq(expected.keys()));
    let kind = |key: &str| key.split_once('/').map(|(kind, _)| kind.to_owned());
    let mut largest: BTreeMap<Option<String>, f64> = BTreeMap::new();
    for (key, expected) in expected {
        let norm = largest.entry(kind(key)).or_default();
        *norm = norm.max(l2(expected.iter().copied()));
    }
    for (key, expected) in expected {
        assert_eq!(found[key].len(), expected.len(), "{key}");
        let off = l2(found[key].iter().zip(expected).map(|(a, b)| a - b));
        let norm = l2(expected.iter().copied()).max(FLOOR * largest[&kind(key)]);
        assert!(off <= TOLERANCE * norm, "`{key}`: {off} of {norm}");
    }
}

#[test]
fn a_run_goes_on_with_other_ranks_and_without_sharing() {
    let settings = ["batch_size=12", "save.keep=9"];
    let (sharing, whole) = (
        eve(&settings),
        eve(&[&settings[..], &["share_experts=false"]].concat()),
    );
    let (alone, moved) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let stages = [
        (&sharing, 2, Some(2)),
        (&sharing, 3, Some(1)),
        (&whole, 1, Some(1)),
        (&sharing, 2, None),
    ];
    for (recipe, n_ranks, steps) in stages {
        let wanted = match steps {
            Some(_) => Ended::Stopped,
            None => Ended::Done,
        };
        let ended = run_with(&whole, alone.path(), (&Alone, None), steps);
        assert_eq!(ended, wanted);
        together(n_ranks, |rank| {
            let ranks = (rank.as_ref(), Some(Rc::clone(rank)));
            let ended = run_with(recipe, moved.path(), ranks, steps);
            assert_eq!(ended, wanted);
        });
    }
    for step in ["step-00000002", "step-00000003", "step-00000004"] {
        let state = |folder: &Path| folder.join("states").join(step);
        let (found, expected) = (state(moved.path()), state(alone.path()));
        let file = "state.safetensors";
        compare(&values(&found.join(file)), &values(&expected.join(file)));
        compare(
            &weights(&found.join("model.safetensors")),
            &weights(&expected.join("model.safetensors")),
        );
    }
    let file = |folder: &Path| weights(&folder.join("model.safetensors"));
    compare(&file(moved.path()), &file(alone.path()));
    let states = fs::read_dir(moved.path().join("states")).expect("listed");
    let left = states.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        !name.to_string_lossy().starts_with("step-")
    });
    assert_eq!(left.count(), 0, "nothing is left of what passed through");
}

#[test]
fn files_of_ranks_that_share_experts_are_those_of_one_process_byte_for_byte() {
    // Nothing moves, so no sum is rounded otherwise.
    let recipe = eve(&["batch_size=6", "optim.lr=0", "length.steps=1"]);
    let (alone, shared) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let run = |folder: &Path, ranks: &Rc<dyn Collective>| {
        let ranks = (ranks.as_ref(), Some(Rc::clone(ranks)));
        run_with(&recipe, folder, ranks, None);
    };
    let one: Rc<dyn Collective> = Rc::new(Alone);
    run(alone.path(), &one);
    together(3, |rank| run(shared.path(), rank));
    let file = |folder: &Path, name: &str| fs::read(folder.join(name)).expect("it reads");
    for name in [
        "model.safetensors",
        "states/step-00000001/model.safetensors",
    ] {
        let (found, expected) = (file(shared.path(), name), file(alone.path(), name));
        assert!(found == expected, "{name}");
    }
}

#[test]
fn a_rank_holds_its_own_experts_alone() {
    let recipe = eve(&["batch_size=6"]);
    let alone: Rc<dyn Collective> = Rc::new(Alone);
    let held = |ranks: &Rc<dyn Collective>| {
        let folder = tempfile::tempdir().expect("a folder");
        let place = place(folder.path(), ranks.as_ref(), Some(Rc::clone(ranks)));
        let trainer = Trainer::open(recipe.clone(), place).expect("it opens");
        let names = trainer.start().variables.keys().cloned();
        (trainer.memory(), names.collect::<BTreeSet<String>>())
    };
    let (whole, all) = held(&alone);
    let shares = Threads::run_owned(3, |rank| {
        let rank: Rc<dyn Collective> = Rc::new(rank);
        held(&rank)
    });
    let shared = whole.n_parameters - 10 * N_OF_EXPERT;
    // Of five experts in each of two mixtures.
    for ((memory, _), n_own) in shares.iter().zip([4, 4, 2]) {
        let own = n_own * N_OF_EXPERT;
        assert_eq!(memory.n_parameters, shared + own);
        assert_eq!(memory.gradient_bytes, 4 * (shared + own));
        // Averages of the held variables, and moments of own experts and of a third of the rest.
        let averages = 4 * (shared + own);
        let moments = memory.optimizer_bytes - averages;
        assert!(moments.abs_diff(8 * (shared / 3 + own)) <= 8, "{moments}");
    }
    let union: BTreeSet<&String> = shares.iter().flat_map(|(_, names)| names).collect();
    assert!(union.into_iter().eq(&all));
}

#[test]
fn gradients_and_weights_of_experts_do_not_travel() {
    let steps = |n: usize, n_ranks: usize| {
        let length = format!("length.steps={n}");
        let recipe = eve(&["batch_size=6", &length]);
        let folder = tempfile::tempdir().expect("a folder");
        Threads::run_owned(n_ranks, |rank| {
            let rank = Rc::new(Counted::new(rank));
            let experts: Rc<dyn Collective> = Rc::clone(&rank) as Rc<dyn Collective>;
            let place = place(folder.path(), rank.as_ref(), Some(experts));
            let mut trainer = Trainer::open(recipe.clone(), place).expect("it opens");
            trainer.run().expect("it runs");
            let experts = &trainer.start().experts;
            let variables = trainer.start().variables.iter();
            let shared = variables.filter(|(name, _)| !experts.has(name));
            let n_shared: usize = shared.map(|(_, variable)| variable.elem_count()).sum();
            (n_shared, ["sum", "broadcast"].map(|of| rank.bytes(of)))
        })
    };
    for n_ranks in [2, 3] {
        let (few, more) = (steps(1, n_ranks), steps(3, n_ranks));
        for ((n_shared, few), (_, more)) in few.into_iter().zip(more) {
            // Gradients of what all ranks hold are summed once a step, and its new weights are given to all once.
            for (few, more) in few.into_iter().zip(more) {
                assert_eq!((more - few) / 2, 4 * n_shared);
            }
        }
    }
}

#[test]
fn sharing_without_ranks_is_refused() {
    let recipe = eve(&["batch_size=6"]);
    let folder = tempfile::tempdir().expect("a folder");
    Threads::run(2, |rank| {
        let place = place(folder.path(), rank, None);
        let said = match TrainPlan::fresh(recipe.clone(), &place) {
            Ok(_) => panic!("not refused"),
            Err(error) => error.to_string(),
        };
        assert!(said.contains("`share_experts`"), "{said}");
    });
    // A pass that knows nothing of the other ranks would miss their experts.
    together(2, |rank| {
        let share = ExpertShare::of(rank.as_ref());
        let opened = open_share(EveTask::Retrieval, &NOTHING, &[], share);
        let found = (opened.model).pass_images(&images(2, "images"), &Pass::new());
        let said = found.expect_err("experts are missing").to_string();
        assert!(said.contains("holds experts"), "{said}");
    });
}
