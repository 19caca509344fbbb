//! Ranks that several passes over a tensor of many chunks find, against a plain sort.

use std::collections::BTreeMap;
use std::path::PathBuf;

use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::{MergePlan, MergeRecipe};
use safetensors::Dtype;

use fixtures::{self as fixture, Raw};

/// Not a multiple of anything, and of several chunks; above what one thread does alone.
const SHAPE: [usize; 2] = [1009, 307];

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self::of(Dtype::F32)
    }

    /// A base and two models whose differences from it are multiples of 1/64, so that many are equal.
    fn of(dtype: Dtype) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        for name in ["base", "a", "b"] {
            let raw = Raw {
                dtype,
                shape: SHAPE.to_vec(),
                bytes: match dtype {
                    Dtype::BF16 => stored(name, |value| half::bf16::from_f32(value).to_le_bytes()),
                    _ => stored(name, f32::to_le_bytes),
                },
            };
            fixture::write(&folder.path(name), &BTreeMap::from([("w".to_owned(), raw)]));
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.safetensors"))
    }

    fn merge(&self, yaml: &str, n_threads: usize) -> Vec<f32> {
        let mut yaml = yaml.to_owned();
        for name in ["base", "a", "b"] {
            let path = self.path(name).display().to_string();
            yaml = yaml.replace(&format!("<{name}>"), &path);
        }
        let recipe = MergeRecipe::parse(&yaml, std::path::Path::new("test")).expect("valid");
        let target = self.path("merged");
        let (plan, _) = MergePlan::resolve(&recipe).expect("resolves");
        let write = WriteOptions {
            force: true,
            sync: false,
            ..WriteOptions::new(&target)
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .build();
        pool.expect("a pool").install(|| {
            execute(
                &plan,
                &write,
                &RunOptions::default(),
                &merge::progress::Silent,
            )
            .expect("merges");
        });
        let merged = fixture::tensors(&target)["w"].values();
        merged.into_iter().map(|value| value as f32).collect()
    }
}

fn stored<const N: usize>(name: &str, encode: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    values(name).into_iter().flat_map(encode).collect()
}

/// Numbers that bf16 has, too.
fn values(name: &str) -> Vec<f32> {
    let mut draws = vec![0.0; SHAPE[0] * SHAPE[1]];
    merge::random::Draws::new(3, name).add_normal(1.0, 0, &mut draws);
    match name {
        "base" => draws
            .iter()
            .map(|draw| (draw * 16.0).round() / 64.0)
            .collect(),
        _ => (values("base").iter().zip(&draws))
            .map(|(base, draw)| base + (draw * 20.0).round() / 64.0)
            .collect(),
    }
}

/// Which elements stay, by sorting: positions in order of magnitude, equal ones in order of place.
fn ascending(delta: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..delta.len()).collect();
    order.sort_by(|&a, &b| delta[a].abs().total_cmp(&delta[b].abs()));
    order
}

fn delta(name: &str) -> Vec<f32> {
    (values(name).iter().zip(values("base")))
        .map(|(value, base)| value - base)
        .collect()
}

fn thinned(name: &str, stays: impl Fn(&[usize]) -> Vec<usize>) -> Vec<f32> {
    let delta = delta(name);
    let mut out = vec![0.0; delta.len()];
    for place in stays(&ascending(&delta)) {
        out[place] = delta[place];
    }
    out
}

#[test]
fn ties_keeps_the_largest_and_of_equals_the_first() {
    let folder = Folder::new();
    for density in [0.001, 0.1, 0.37, 0.9] {
        let yaml = format!(
            "merge_method: ties\nbase_model: <base>\nmodels: [{{model: <a>, parameters: {{weight: 1, \
             density: {density}}}}}]"
        );
        let merged = folder.merge(&yaml, 2);
        let n = SHAPE[0] * SHAPE[1];
        let count = ((density * n as f64) as usize).max(1);
        let kept = thinned("a", |ascending| {
            // Equal magnitudes at the cut: the first places, so the sort is turned within equals.
            let delta = delta("a");
            let mut order = ascending.to_vec();
            order.sort_by(|&x, &y| {
                let sizes = delta[y].abs().total_cmp(&delta[x].abs());
                sizes.then(x.cmp(&y))
            });
            order.truncate(count);
            order
        });
        let expected: Vec<f32> = values("base")
            .iter()
            .zip(&kept)
            .map(|(b, d)| b + d)
            .collect();
        assert!(merged == expected, "density {density}");
    }
}

#[test]
fn breadcrumbs_keeps_the_middle() {
    let folder = Folder::new();
    for (density, gamma) in [(0.5, 0.1), (0.9, 0.3), (0.2, 0.7)] {
        let yaml = format!(
            "merge_method: breadcrumbs\nbase_model: <base>\nmodels: [{{model: <b>, parameters: {{weight: 1, \
             density: {density}, gamma: {gamma}}}}}]"
        );
        let merged = folder.merge(&yaml, 2);
        let n = SHAPE[0] * SHAPE[1];
        let part = |share: f64| (share * n as f64) as usize;
        let bottom = n.saturating_sub(part(density) + part(gamma));
        let kept = thinned("b", |ascending| {
            ascending[bottom..bottom + part(density)].to_vec()
        });
        let expected: Vec<f32> = values("base")
            .iter()
            .zip(&kept)
            .map(|(b, d)| b + d)
            .collect();
        assert!(merged == expected, "density {density}, gamma {gamma}");
    }
}

#[test]
fn one_thread_and_many_give_the_same_bytes_for_every_method_of_several_passes() {
    let folder = Folder::new();
    let two = "models: [{model: <a>, parameters: {weight: 0.5, density: 0.3}}, {model: <b>, parameters: \
               {weight: 0.75, density: 0.6}}]";
    let weighed = "models: [{model: <a>, parameters: {weight: 0.5}}, {model: <b>, parameters: {weight: 0.75}}]";
    let plain = "models: [<a>, <b>]";
    let recipes = [
        (
            "slerp",
            "base_model: <base>\nmodels: [<base>, <a>]\nparameters: {t: 0.3}".to_owned(),
        ),
        (
            "nuslerp",
            format!("{weighed}\nparameters: {{nuslerp_flatten: false, nuslerp_row_wise: true}}"),
        ),
        ("multislerp", format!("{weighed}\nbase_model: <base>")),
        ("karcher", plain.to_owned()),
        ("model_stock", format!("{plain}\nbase_model: <base>")),
        (
            "ties",
            format!("{two}\nbase_model: <base>\nparameters: {{rescale: true}}"),
        ),
        ("dare_ties", format!("{two}\nbase_model: <base>")),
        ("breadcrumbs", format!("{two}\nbase_model: <base>")),
        ("della", format!("{two}\nbase_model: <base>")),
        (
            "sce",
            format!("{plain}\nbase_model: <base>\nparameters: {{select_topk: 0.2}}"),
        ),
        (
            "arcee_fusion",
            "base_model: <base>\nmodels: [<b>]".to_owned(),
        ),
        ("ramplus_tl", format!("{plain}\nbase_model: <base>")),
    ];
    for (method, rest) in recipes {
        for rng in ["counter", "mergekit"] {
            let yaml = format!("merge_method: {method}\nrng: {rng}\n{rest}");
            let bits = |n_threads| -> Vec<u32> {
                let merged = folder.merge(&yaml, n_threads);
                merged.iter().map(|value| value.to_bits()).collect()
            };
            let alone = bits(1);
            assert!(alone == bits(2) && alone == bits(5), "{method}");
            let base: Vec<u32> = values("base").iter().map(|value| value.to_bits()).collect();
            assert!(alone != base, "{method} changes something");
        }
    }
}

#[test]
fn what_does_not_fit_into_memory_between_two_passes_is_read_again() {
    let folder = Folder(tempfile::tempdir().expect("a temporary folder"));
    // Together more than is kept; one is twice the other, so that the way between them is straight.
    let n = 11 << 20;
    let value = |at: usize| (at % 1021) as f32;
    for (name, factor) in [("a", 1.0), ("b", 2.0)] {
        let raw = Raw {
            dtype: Dtype::F32,
            shape: vec![n],
            bytes: (0..n)
                .flat_map(|at| (factor * value(at)).to_le_bytes())
                .collect(),
        };
        fixture::write(&folder.path(name), &BTreeMap::from([("w".to_owned(), raw)]));
    }
    let yaml =
        "merge_method: slerp\nbase_model: <a>\nmodels: [{model: <b>}]\nparameters: {t: 0.5}\n";
    let merged = folder.merge(yaml, 2);
    assert_eq!(merged.len(), n);
    for (at, found) in merged.into_iter().enumerate() {
        assert_eq!(found, 1.5 * value(at), "element {at}");
    }
}

#[test]
fn tensors_stored_in_bf16_merge_like_the_same_numbers_in_f32() {
    let (single, half) = (Folder::of(Dtype::F32), Folder::of(Dtype::BF16));
    let with_base = "base_model: <base>\nmodels: [{model: <a>}, {model: <b>}]";
    let without_base = "models: [{model: <a>}, {model: <b>}]";
    let two_ends = "base_model: <base>\nmodels: [{model: <a>}]";
    let weights = "weight: 0.6";
    let thinned = "weight: 0.6, density: 0.4";
    for (method, models, parameters) in [
        ("linear", without_base, weights),
        ("slerp", two_ends, "t: 0.3"),
        ("nuslerp", without_base, weights),
        ("nuslerp", with_base, "weight: 0.6, nuslerp_flatten: false"),
        (
            "nuslerp",
            with_base,
            "weight: 0.6, nuslerp_flatten: false, nuslerp_row_wise: true",
        ),
        ("multislerp", without_base, weights),
        ("karcher", without_base, ""),
        ("task_arithmetic", with_base, weights),
        ("ties", with_base, thinned),
        ("dare_linear", with_base, thinned),
        (
            "dare_linear",
            with_base,
            "weight: 0.6, density: 0.4, rescale: inverse",
        ),
        ("dare_ties", with_base, thinned),
        ("breadcrumbs", with_base, thinned),
        ("breadcrumbs_ties", with_base, thinned),
        ("della", with_base, thinned),
        (
            "della_linear",
            with_base,
            "weight: 0.6, density: 0.4, rescale: inverse",
        ),
        ("sce", with_base, "select_topk: 0.4"),
        ("model_stock", with_base, ""),
        ("model_stock", with_base, "filter_wise: true"),
        ("nearswap", two_ends, "t: 0.3"),
        ("arcee_fusion", two_ends, ""),
        ("ram", with_base, ""),
        ("ramplus_tl", with_base, ""),
    ] {
        let yaml = format!(
            "merge_method: {method}\nout_dtype: float32\nparameters: {{{parameters}}}\n{models}"
        );
        let wanted = single.merge(&yaml, 2);
        let unlike = (half.merge(&yaml, 2).iter().zip(&wanted))
            .filter(|(found, wanted)| found != wanted)
            .count();
        assert_eq!(unlike, 0, "elements of {method} with {parameters}");
        assert!(wanted.iter().any(|&value| value != 0.0), "{method}");
    }
}
