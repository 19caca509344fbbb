//! One torch file per rank, with parts of tensors.

use std::fs;

use merge::TrainerFault;
use merge::io::Container;

use super::{copy, fault, fixture, opened, refused, require_equal};

const RANK_0: &str = "model_world_size_2_rank_0.pt";
const RANK_1: &str = "model_world_size_2_rank_1.pt";

#[test]
fn the_parts_of_two_ranks_are_the_model_that_torch_gathers() {
    for name in ["ranks", "sharded_tensors"] {
        let found = opened(&fixture(name));
        assert_eq!(found.info().container, Container::Ranks);
        assert_eq!(found.info().files.len(), 2);
        require_equal(&found, &opened(&fixture(&format!("{name}.pt"))));
    }
}

#[test]
fn nothing_of_a_run_is_said_to_be_passed_over() {
    for name in ["ranks", "sharded_tensors"] {
        assert!(opened(&fixture(name)).notes().is_empty());
    }
}

#[test]
fn tied_tensors_of_ranks_are_one() {
    let found = opened(&fixture("ranks"));
    assert_eq!(found.name_of("head.weight"), "embed.weight");
}

#[test]
fn a_missing_rank_is_named() {
    let folder = copy("ranks");
    fs::remove_file(folder.path().join(RANK_1)).expect("removed");
    let said = fault(refused(folder.path()));
    assert!(
        matches!(&said, TrainerFault::MissingRanks { world: 2, ranks, .. } if *ranks == [1]),
        "{said}"
    );
}

#[test]
fn a_file_of_another_rank_or_world_is_refused() {
    let folder = copy("ranks");
    fs::copy(folder.path().join(RANK_0), folder.path().join(RANK_1)).expect("copied");
    let said = fault(refused(folder.path()));
    assert!(
        matches!(&said, TrainerFault::OtherRank { path, rank: 0, .. } if path.ends_with(RANK_1)),
        "{said}"
    );
    for name in ["ranks", "sharded_tensors"] {
        let folder = copy(name);
        // Two more ranks by name, and the world that the names say.
        for (from, to) in [(RANK_0, "0"), (RANK_1, "1"), (RANK_0, "2"), (RANK_1, "3")] {
            let to = format!("model_world_size_4_rank_{to}.pt");
            fs::copy(folder.path().join(from), folder.path().join(to)).expect("copied");
        }
        let said = fault(refused(folder.path()));
        assert!(matches!(&said, TrainerFault::SeveralWorlds { found, .. } if found.len() == 2));
        for rank in [RANK_0, RANK_1] {
            fs::remove_file(folder.path().join(rank)).expect("removed");
        }
        let said = fault(refused(folder.path()));
        assert!(matches!(said, TrainerFault::OtherRank { .. }), "{said}");
    }
}

#[test]
fn a_rank_beyond_its_world_is_refused() {
    let folder = copy("ranks");
    let beyond = folder.path().join("model_world_size_2_rank_7.pt");
    fs::copy(folder.path().join(RANK_0), &beyond).expect("copied");
    let said = fault(refused(folder.path()));
    assert!(
        matches!(&said, TrainerFault::RankBeyondWorld { path, world: 2 } if *path == beyond),
        "{said}"
    );
}

#[test]
fn the_file_of_one_rank_is_not_the_model() {
    let file = fixture("ranks").join(RANK_0);
    let error = refused(&file);
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("name the folder"))
    );
    assert!(matches!(fault(error), TrainerFault::OnePart { path, .. } if path == file));
    // Nor is it under another name.
    let folder = tempfile::tempdir().expect("a folder");
    let alone = folder.path().join("model.pt");
    for name in ["ranks", "sharded_tensors"] {
        fs::copy(fixture(name).join(RANK_1), &alone).expect("copied");
        let said = fault(refused(&alone));
        assert!(
            matches!(&said, TrainerFault::PartOfTensor { rank: 1, .. }),
            "{said}"
        );
    }
}

#[test]
fn another_shape_on_another_rank_is_refused() {
    // The same key is a DTensor on one rank and a ShardedTensor on the other.
    let folder = copy("ranks");
    let other = fixture("sharded_tensors").join(RANK_1);
    fs::copy(other, folder.path().join(RANK_1)).expect("copied");
    let said = fault(refused(folder.path()));
    assert!(matches!(said, TrainerFault::RanksDisagree { .. }), "{said}");
}

#[cfg(unix)]
#[test]
fn a_planted_link_is_not_followed() {
    let folder = copy("ranks");
    let outside = copy("ranks");
    let link = folder.path().join(RANK_1);
    fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink(outside.path().join(RANK_1), &link).expect("linked");
    let said = fault(refused(folder.path()));
    assert!(matches!(said, TrainerFault::OutsideFolder { .. }), "{said}");
}
