//! Several adapters as one.

use std::path::PathBuf;

use fixtures as fixture;

use super::{Folder, noise, raw};

#[test]
fn several_adapters_become_one_side_by_side_or_cut_to_a_rank() {
    let folder = Folder::new(vec![("fc.weight", raw(&[3, 4], &noise(1, &[3, 4])))]);
    for (name, rank, seed) in [("one", 1, 2), ("two", 2, 3)] {
        let product = vec![
            (
                "fc.lora_A.weight",
                raw(&[rank, 4], &noise(seed, &[rank, 4])),
            ),
            (
                "fc.lora_B.weight",
                raw(&[3, rank], &noise(seed + 10, &[3, rank])),
            ),
        ];
        folder.adapter(name, &format!(r#""r": {rank}, "lora_alpha": 3"#), product);
    }
    let both = [
        (folder.0.path().join("one"), 0.5),
        (folder.0.path().join("two"), -1.0),
    ];
    let combine = |name: &str, rank| {
        let target = merge::lora::ExtractTarget {
            folder: folder.0.path().join(name),
            force: false,
            command: "test".into(),
            base: PathBuf::new(),
        };
        merge::lora::combine(&both, rank, &target, &merge::progress::Silent).expect("combines")
    };
    let found = combine("joined", None);
    assert_eq!(
        (found.n_modules, found.rank, found.relative_error),
        (1, 3, 0.0)
    );
    let stacked = folder.with("one*0.5+two*-1").expect("merges")["fc.weight"].values();
    let joined = folder.with("joined").expect("merges")["fc.weight"].values();
    assert_eq!(
        fixture::first_difference(&joined, &stacked, 0.0, 1e-6),
        None
    );
    let cut = combine("cut", Some(2));
    assert_eq!(cut.rank, 2);
    assert!(cut.relative_error > 0.0 && cut.relative_error < 1.0);
    let near = folder.with("cut").expect("merges")["fc.weight"].values();
    let base = noise(1, &[3, 4]);
    let squares = |of: &dyn Fn(usize) -> f64| (0..12).map(|at| of(at).powi(2)).sum::<f64>();
    let missed = squares(&|at| near[at] - stacked[at]);
    let whole = squares(&|at| stacked[at] - f64::from(base[at]));
    assert!(((missed / whole).sqrt() - cut.relative_error).abs() < 1e-5);
}
