//! Pairs of pictures and captions, as examples.

use train::data::{Examples, Joined, open_annotations};

/// Other images are drawn by these numbers.
#[test]
fn captions_of_one_path_of_a_csv_file_are_of_one_image() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("set/train")).expect("a folder");
    let table = "image,caption\na.png,one\nb.png,two\na.png,three\n";
    std::fs::write(folder.path().join("set/train_anno.csv"), table).expect("written");
    let open = || open_annotations(folder.path(), "set", "train").expect("a set");
    let twice = Joined::new(vec![open(), open()]).expect("two sets");
    let images = (0..twice.len()).map(|at| twice.image(at));
    assert_eq!(images.collect::<Vec<_>>(), [0, 1, 0, 2, 3, 2]);
    assert_eq!(twice.n_images(), 4);
}
