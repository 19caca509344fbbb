//! The toy models of the published programs: every form of vl-merging, and both of VLMo, with
//! weights that follow a rule, so that no fixture is needed. Expected numbers were printed by the
//! published programs to five digits.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::models::{Multiway, Overrides, ShallowAttention};
use evaluate::nn::{Mask, Pass};
use merge::io::{Container, Root, SourceInfo, TensorEntry};
use merge::layouts::{CatalogSpec, Form, Heads, Sizes, catalog};
use merge::{Checkpoint, TensorInfo, TensorSource};

/// The numbers are printed to five digits, and two implementations differ by up to 6e-6.
const TOLERANCE: f32 = 2e-5;

/// The toy's sizes.
fn sizes() -> Sizes {
    Sizes {
        n_blocks: 3,
        width: 8,
        n_heads: 2,
        ffn_width: 32,
        fusion_start: 2,
        patch_size: 16,
        image_size: 32,
        text_len: 6,
        text_table_len: 8,
        vocabulary: 12,
        ..Sizes::base()
    }
}

/// A checkpoint whose elements follow the rule: for the `t`-th key in byte order and element `j`,
/// b = sin(0.7 j + 1.3 t); norms 1 + 0.1 b, LayerScale 0.5 + 0.1 b, logit scales ln(1 / 0.07), all
/// else 0.2 b.
struct Toy {
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
}

impl Toy {
    fn checkpoint(form: Form, heads: Heads, n_keys: usize) -> Arc<Checkpoint> {
        let listed = catalog(&CatalogSpec {
            form,
            sizes: sizes(),
            heads,
            with_buffers: false,
            original_spelling: false,
        });
        let mut keys: Vec<(String, TensorInfo)> = (listed.into_iter())
            .map(|(key, info, _)| (key, info))
            .filter(|(key, _)| !key.starts_with("mlm_score"))
            .collect();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(keys.len(), n_keys, "{form:?}");
        let tensors = (keys.into_iter()).map(|(name, info)| TensorEntry::named(name, info));
        let tensors: Vec<_> = tensors.collect();
        let root = Root {
            name: String::new(),
            n_tensors: tensors.len(),
            n_bytes: 0,
        };
        let info = SourceInfo {
            path: PathBuf::from("toy"),
            container: Container::Memory,
            files: Vec::new(),
            metadata: Default::default(),
            roots: vec![root],
            root: String::new(),
            values: Vec::new(),
            opaque: Vec::new(),
        };
        Arc::new(Checkpoint::new(Box::new(Self { info, tensors })))
    }
}

impl TensorSource for Toy {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> merge::Result<()> {
        let TensorEntry { name, info, .. } = &self.tensors[index];
        let name = name.as_deref().expect("named");
        for (element, bytes) in out.chunks_exact_mut(4).enumerate() {
            let b = (0.7 * (first + element) as f64 + 1.3 * index as f64).sin();
            let value = match name {
                "logit_scale" | "logit_vl_scale" => 2.65926,
                _ if info.shape.len() == 1 && name.ends_with(".weight") => 1.0 + 0.1 * b,
                _ if name.contains("gamma") => 0.5 + 0.1 * b,
                _ => 0.2 * b,
            };
            bytes.copy_from_slice(&(value as f32).to_le_bytes());
        }
        Ok(())
    }
}

struct Inputs {
    ids: Tensor,
    mask: Mask,
    image: Tensor,
}

fn inputs() -> Inputs {
    let image: Vec<f32> = (0..3 * 32 * 32)
        .map(|n| (0.05 * n as f64).sin() as f32)
        .collect();
    let kept = Tensor::new(&[[1u8, 1, 1, 1, 0, 0]], &Device::Cpu).expect("a mask");
    Inputs {
        ids: Tensor::new(&[[1u32, 5, 9, 2, 0, 0]], &Device::Cpu).expect("ids"),
        mask: Mask::new(&kept).expect("a mask"),
        image: Tensor::from_vec(image, (1, 3, 32, 32), &Device::Cpu).expect("an image"),
    }
}

fn model(form: Form, heads: Heads, n_keys: usize, overrides: Overrides) -> Multiway {
    let is_absolute = form == Form::VlmoAbsolute;
    let overrides = Overrides {
        n_heads: is_absolute.then_some(2),
        fusion_start: Some(2),
        text_table_len: (!is_absolute).then_some(8),
        ..overrides
    };
    let checkpoint = Toy::checkpoint(form, heads, n_keys);
    let opened = Multiway::open(checkpoint, &overrides, &Device::Cpu, DType::F32);
    opened.expect("the model loads").0
}

fn check(what: &str, found: &Tensor, expected: &[f32]) {
    let found: Vec<f32> = found
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("numbers");
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() <= TOLERANCE,
            "{what}: {found:?}, expected {expected:?}"
        );
    }
}

/// The vectors of one form; `itm` where it was printed.
struct Vectors {
    pooled: [f32; 8],
    itm: Option<[f32; 2]>,
    last: [f32; 8],
    text: [f32; 8],
    image: [f32; 8],
    fused_text: [f32; 8],
    fused_image: [f32; 8],
}

fn check_all(name: &str, model: &Multiway, expected: &Vectors) {
    let Inputs { ids, mask, image } = inputs();
    let pass = Pass::new();
    let run = || -> evaluate::Result<()> {
        let joint = model.joint(&ids, &mask, &image, None, 0, &pass)?;
        let pooled = model.heads().pool(&joint.first()?)?;
        check(&format!("{name} pooled"), &pooled, &expected.pooled);
        if let Some(itm) = &expected.itm {
            check(
                &format!("{name} itm"),
                &model.heads().matching()?.forward(&pooled)?,
                itm,
            );
        }
        check(
            &format!("{name} last"),
            &joint.image.narrow(1, 4, 1)?,
            &expected.last,
        );
        let text = model.text_features(&ids, &mask, &pass)?;
        check(&format!("{name} text"), &text, &expected.text);
        let features = model.image_features(&image, &pass)?;
        check(&format!("{name} image"), &features, &expected.image);
        let text = model.fused_text_features(&ids, &mask, &pass)?;
        check(&format!("{name} fused text"), &text, &expected.fused_text);
        let features = model.fused_image_features(&image, &pass)?;
        check(
            &format!("{name} fused image"),
            &features,
            &expected.fused_image,
        );
        Ok(())
    };
    run().expect("the passes run");
}
#[test]
fn the_agnostic_form_computes_as_published() {
    let expected = Vectors {
        pooled: [
            0.05198, -0.47206, -0.68742, -0.65954, -0.36717, 0.18971, 0.59077, 0.69477,
        ],
        itm: Some([-0.75415, -0.59198]),
        last: [
            -1.49255, 0.59871, -1.05856, 0.35539, 0.74061, 0.053, 1.6344, -0.72814,
        ],
        text: [
            0.23854, 0.44077, 0.44516, 0.24972, -0.0578, -0.33938, -0.46862, -0.38752,
        ],
        image: [
            -0.05877, 0.27165, 0.48014, 0.47311, 0.25371, -0.07957, -0.37713, -0.50542,
        ],
        fused_text: [
            -0.41614, -0.46527, -0.30556, -0.00869, 0.29209, 0.46175, 0.42415, 0.19616,
        ],
        fused_image: [
            -0.19532, -0.42379, -0.46203, -0.29289, 0.00773, 0.30487, 0.46517, 0.41667,
        ],
    };
    let model = model(Form::Agnostic, Heads::Pretrain, 69, Overrides::default());
    check_all("ufo", &model, &expected);
}

#[test]
fn the_all_specific_form_computes_as_published() {
    let expected = Vectors {
        pooled: [
            -0.33784, -0.7843, -0.85723, -0.73075, -0.15866, 0.59126, 0.83668, 0.83164,
        ],
        itm: Some([-0.97559, -0.62786]),
        last: [
            0.85247, -0.84291, -0.71913, -1.35468, -0.31697, 0.31054, 0.55969, 1.85584,
        ],
        text: [
            0.46693, 0.44358, 0.22112, -0.1006, -0.37716, -0.48442, -0.37424, -0.09608,
        ],
        image: [
            -0.43178, -0.46131, -0.28377, 0.02115, 0.31657, 0.4699, 0.4123, 0.16963,
        ],
        fused_text: [
            -0.48758, -0.42207, -0.1671, 0.16287, 0.41974, 0.48819, 0.33752, 0.03534,
        ],
        fused_image: [
            0.50755, 0.33721, 0.01552, -0.31315, -0.50125, -0.46436, -0.21903, 0.12461,
        ],
    };
    let model = model(
        Form::AllSpecific,
        Heads::Pretrain,
        121,
        Overrides::default(),
    );
    check_all("all_moe", &model, &expected);
}

#[test]
fn the_attn_specific_form_computes_as_published() {
    let expected = Vectors {
        pooled: [
            -0.41102, -0.75505, -0.79546, -0.60256, 0.00503, 0.6059, 0.79333, 0.74849,
        ],
        itm: None,
        last: [
            -0.75555, 0.61307, -0.34285, -0.69184, 0.79283, -1.10345, 2.03569, -0.62775,
        ],
        text: [
            0.4239, 0.46353, 0.2951, -0.00579, -0.30408, -0.46588, -0.41856, -0.18336,
        ],
        image: [
            -0.48628, -0.42389, -0.17123, 0.15829, 0.41676, 0.48816, 0.34044, 0.03991,
        ],
        fused_text: [
            -0.50747, -0.33588, -0.01352, 0.31491, 0.50199, 0.46373, 0.21733, -0.12663,
        ],
        fused_image: [
            0.1803, -0.17, -0.44399, -0.51869, -0.36057, -0.0406, 0.2976, 0.50221,
        ],
    };
    let model = model(
        Form::AttnSpecific,
        Heads::Pretrain,
        97,
        Overrides::default(),
    );
    check_all("attn_moe", &model, &expected);
}

#[test]
fn the_ffn_specific_form_computes_as_published() {
    let expected = Vectors {
        pooled: [
            -0.28552, -0.61626, -0.67356, -0.4973, -0.02895, 0.46075, 0.66272, 0.62621,
        ],
        itm: None,
        last: [
            0.61348, -1.87486, 0.60783, -1.15954, 0.29506, 0.7567, -0.40885, 1.20413,
        ],
        text: [
            0.46949, 0.44157, 0.21544, -0.10739, -0.38202, -0.48517, -0.37054, -0.08959,
        ],
        image: [
            0.46779, 0.44291, 0.21923, -0.10287, -0.37879, -0.48468, -0.37302, -0.09392,
        ],
        fused_text: [
            -0.50658, -0.36939, -0.06639, 0.26641, 0.47963, 0.47755, 0.26112, -0.07252,
        ],
        fused_image: [
            -0.48212, -0.42918, -0.18361, 0.14439, 0.40757, 0.48781, 0.34908, 0.05367,
        ],
    };
    let model = model(Form::FfnSpecific, Heads::Pretrain, 93, Overrides::default());
    check_all("ffn_moe", &model, &expected);
}

#[test]
fn the_ln_specific_form_computes_as_published() {
    let expected = Vectors {
        pooled: [
            -0.28375, -0.46483, -0.45016, -0.24089, 0.10367, 0.38385, 0.47718, 0.37749,
        ],
        itm: None,
        last: [
            -0.37822, 0.2229, 0.34465, -1.44958, 1.39475, -1.23234, 1.47586, -0.30714,
        ],
        text: [
            0.41772, 0.46495, 0.30348, 0.00578, -0.29451, -0.4626, -0.42305, -0.1936,
        ],
        image: [
            -0.50102, -0.29212, 0.04789, 0.36641, 0.52046, 0.44089, 0.16342, -0.18741,
        ],
        fused_text: [
            -0.50535, -0.37751, -0.08022, 0.25308, 0.47278, 0.48026, 0.27217, -0.05809,
        ],
        fused_image: [
            0.29678, -0.0514, -0.37651, -0.53262, -0.44965, -0.16484, 0.19395, 0.46569,
        ],
    };
    let model = model(Form::LnSpecific, Heads::Pretrain, 85, Overrides::default());
    check_all("ln_moe", &model, &expected);
}

#[test]
fn vlmo_with_relative_positions_computes_as_published() {
    let expected = Vectors {
        pooled: [
            0.39562, -0.20085, -0.62308, -0.72861, -0.60796, -0.16972, 0.41006, 0.68757,
        ],
        itm: Some([-0.6246, -0.63478]),
        last: [
            0.57363, -1.42935, 1.65555, -1.334, 0.91963, -0.52127, 0.00566, 0.2309,
        ],
        text: [
            0.06548, 0.35632, 0.48722, 0.39942, 0.13233, -0.19415, -0.43349, -0.47824,
        ],
        image: [
            0.48844, 0.4208, 0.16428, -0.16598, -0.42174, -0.4882, -0.33551, -0.03223,
        ],
        fused_text: [
            -0.331, -0.46508, -0.39041, -0.14049, 0.17249, 0.40804, 0.46044, 0.30616,
        ],
        fused_image: [
            -0.38193, -0.4688, -0.34525, -0.06672, 0.24176, 0.44171, 0.4434, 0.24606,
        ],
    };
    let model = model(Form::Vlmo, Heads::Pretrain, 91, Overrides::default());
    check_all("vlmo_relative", &model, &expected);
}

#[test]
fn vlmo_with_absolute_positions_computes_as_published() {
    let expected = Vectors {
        pooled: [
            0.37652, 0.64243, 0.65881, 0.4359, -0.06571, -0.51665, -0.67791, -0.61202,
        ],
        itm: Some([0.43394, 0.28673]),
        last: [
            -1.37409, 0.8489, -0.76514, 1.4347, 0.26973, 0.41786, 0.52275, -1.17497,
        ],
        text: [
            -0.36999, -0.46875, -0.3571, -0.08516, 0.22501, 0.43418, 0.44846, 0.26144,
        ],
        image: [
            0.32338, 0.46383, 0.39608, 0.15055, -0.16256, -0.4027, -0.46208, -0.31405,
        ],
        fused_text: [
            0.50724, 0.36303, 0.05586, -0.27638, -0.48456, -0.47524, -0.2526, 0.08343,
        ],
        fused_image: [
            -0.47669, -0.43507, -0.19816, 0.1277, 0.39624, 0.48692, 0.35904, 0.07,
        ],
    };
    let model = model(
        Form::VlmoAbsolute,
        Heads::Pretrain,
        85,
        Overrides::default(),
    );
    check_all("vlmo_absolute", &model, &expected);
}

#[test]
fn joint_attention_in_shallow_blocks_computes_as_published() {
    let overrides = Overrides {
        shallow_attention: Some(ShallowAttention::Joint),
        ..Overrides::default()
    };
    let model = model(Form::Agnostic, Heads::Pretrain, 69, overrides);
    let Inputs { ids, mask, image } = inputs();
    let joint = model
        .joint(&ids, &mask, &image, None, 0, &Pass::new())
        .expect("it runs");
    let pooled = model
        .heads()
        .pool(&joint.first().expect("a token"))
        .expect("it runs");
    check(
        "pooled",
        &pooled,
        &[
            -0.17513, -0.55186, -0.65392, -0.52927, -0.13068, 0.36508, 0.61749, 0.6241,
        ],
    );
    let last = joint.image.narrow(1, 4, 1).expect("the last token");
    check(
        "last",
        &last,
        &[
            -1.59669, 0.42605, -0.94273, 0.72733, 0.79017, 0.38386, 1.19606, -0.8731,
        ],
    );
}

#[test]
fn two_images_are_told_apart_as_published() {
    let model = model(Form::AllSpecific, Heads::Nlvr2, 119, Overrides::default());
    let Inputs { ids, mask, image } = inputs();
    let negative = image.neg().expect("negated");
    let logits = model
        .judge(&ids, &mask, [&image, &negative], &Pass::new())
        .expect("it runs");
    check("logits", &logits, &[0.10337, 0.16451]);
}
