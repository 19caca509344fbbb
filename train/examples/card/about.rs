//! The device itself.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::Result;

/// Side of the matrices that are multiplied: the larger is for cards.
const SIDES: [usize; 2] = [1024, 8192];

/// Products that are timed.
const ROUNDS: usize = 10;

/// Opens the device and times products of square matrices, which is all that candle's products can reach.
pub fn about(device: &Device) -> Result<Value> {
    let is_card = device.is_cuda();
    let side = SIDES[usize::from(is_card)];
    let dtypes: &[(&str, DType)] = match is_card {
        true => &[("f32", DType::F32), ("bf16", DType::BF16)],
        false => &[("f32", DType::F32)],
    };
    let mut rates = serde_json::Map::new();
    for &(name, dtype) in dtypes {
        let one = Tensor::randn(0f32, 1.0, (side, side), device)?.to_dtype(dtype)?;
        for _ in 0..3 {
            one.matmul(&one)?;
        }
        device.synchronize()?;
        let started = Instant::now();
        for _ in 0..ROUNDS {
            one.matmul(&one)?;
        }
        device.synchronize()?;
        let flops = 2.0 * (side as f64).powi(3) * ROUNDS as f64;
        rates.insert(name.into(), json!(flops / started.elapsed().as_secs_f64()));
    }
    Ok(
        json!({ "device": format!("{:?}", device.location()), "product_side": side, "product_flops_per_second": rates }),
    )
}
