//! The meaning of a folder around a model in pieces.

use std::fs;
use std::path::Path;

use merge::TrainerFault;

use super::{fault, fixture, opened, refused, require_equal};

fn copy_into(name: &str, folder: &Path) {
    fs::create_dir_all(folder).expect("made");
    for entry in fs::read_dir(fixture(name)).expect("a fixture") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), folder.join(entry.file_name())).expect("copied");
    }
}

#[test]
fn a_folder_stands_for_the_one_model_in_it() {
    let home = tempfile::tempdir().expect("a folder");
    copy_into("distributed", &home.path().join("pytorch_model_fsdp_0"));
    copy_into("distributed", &home.path().join("optimizer_0"));
    fs::write(home.path().join("scheduler.bin"), b"state").expect("written");
    let found = opened(home.path());
    require_equal(&found, &opened(&fixture("distributed.pt")));
    assert!(
        found
            .notes()
            .iter()
            .any(|note| note.contains("`pytorch_model_fsdp_0`"))
    );
    copy_into("ranks", &home.path().join("actor"));
    let said = fault(refused(home.path()));
    assert!(matches!(&said, TrainerFault::SeveralFolders { folders, .. } if folders.len() == 2));
}

#[test]
fn a_usual_model_comes_before_one_in_pieces() {
    let home = tempfile::tempdir().expect("a folder");
    copy_into("distributed", home.path());
    fs::copy(fixture("ranks.pt"), home.path().join("pytorch_model.bin")).expect("copied");
    let found = opened(home.path());
    assert!(found.path().ends_with("pytorch_model.bin"));
    assert!(found.notes()[0].contains("torch distributed checkpoint"));
    // Another model file is passed over.
    fs::rename(
        home.path().join("pytorch_model.bin"),
        home.path().join("other.pt"),
    )
    .expect("moved");
    let found = opened(home.path());
    require_equal(&found, &opened(&fixture("distributed.pt")));
    assert!(
        found.notes().iter().any(|note| note.contains("other.pt")),
        "{:?}",
        found.notes()
    );
}

#[test]
fn two_kinds_in_one_folder_are_refused() {
    let home = tempfile::tempdir().expect("a folder");
    copy_into("distributed", home.path());
    copy_into("ranks", home.path());
    let said = fault(refused(home.path()));
    assert!(
        matches!(&said, TrainerFault::SeveralKinds { kinds, .. } if kinds.len() == 2),
        "{said}"
    );
}
