//! A CLIP in the form of OpenAI's archives, which no configuration stands beside, gives what torch gave
//! (`tests/torchscript.py --write`).

use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::forward::{self, Given};
use evaluate::images::{Margins, Resize};
use evaluate::models::{self, Overrides};

/// Of products in f32; the largest logit is near 12.
const TOLERANCE: f64 = 1e-4;

#[test]
fn an_archive_of_openai_runs_without_a_configuration() {
    let open = |name: &str| {
        let path = fixtures::path(&format!("torchscript/{name}"));
        merge::io::open(&path, &Default::default()).expect("it opens")
    };
    let opened = models::open(
        Arc::new(open("openai.pt")),
        &Overrides::default(),
        &Device::Cpu,
        DType::F32,
    );
    let opened = opened.expect("a model");
    let input = opened.model.input();
    assert_eq!(input.image.margins, Margins::Even);
    assert_eq!(
        input.image.resize,
        Resize::Shorter {
            to: input.image.side
        }
    );
    let named = opened.model.named_passes().expect("passes");
    let inputs = open("openai_inputs.safetensors");
    let given = Given::open(&inputs, named.inputs(), &Device::Cpu, DType::F32).expect("inputs");
    let outcome = forward::run(
        opened.model.as_ref(),
        &given,
        &["unmasked".to_owned()],
        true,
    );
    let found = outcome.expect("it runs").tensors;
    let expected = fixtures::tensors(&fixtures::path("torchscript/openai_outputs.safetensors"));
    for (name, expected) in expected {
        let found = found[&name].flatten_all().and_then(|t| t.to_vec1::<f32>());
        let found: Vec<f64> = (found.expect("numbers").into_iter())
            .map(f64::from)
            .collect();
        let difference =
            fixtures::first_difference(&found, &expected.values(), TOLERANCE, TOLERANCE);
        assert_eq!(difference, None, "{name}");
    }
}
