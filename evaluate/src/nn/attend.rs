//! Attention from queries, keys and values.

use candle_core::{D, DType, Result, Tensor};

use super::Mask;
use super::cpu::{self, ops};

/// The numbers that attention adds to its scores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bias<'a> {
    /// A number for each pair of query and key, `(h, n, m)`: relative position bias.
    pub pairs: Option<&'a Tensor>,
    /// The hidden keys.
    pub mask: Option<&'a Mask>,
}

/// Attention of `q: (b, n, d)` to `k` and `v: (b, m, d)`, giving `(b, n, d)`: self-attention where
/// all three come from one sequence, cross-attention where keys and values come from another.
/// Scores and softmax are computed in f32 or wider.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, bias: Bias<'_>, heads: usize) -> Result<Tensor> {
    let shares = attention_shares(q, k, bias, heads)?;
    mix(&shares, v)
}

/// Attention as [`attend`] has it, of `q: (b, n, d)` to keys and values side by side, `kv: (b, m, 2 d)`.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn attend_to(q: &Tensor, kv: &Tensor, bias: Bias<'_>, heads: usize) -> Result<Tensor> {
    if let (true, None, Some(mask)) = (cpu::takes(q), bias.pairs, added(bias.mask)) {
        check_sizes(q, kv, mask, heads)?;
        let nothing = Tensor::zeros(0, DType::F32, q.device())?;
        let mask = mask.unwrap_or(&nothing).contiguous()?;
        let (q, kv) = (q.contiguous()?, kv.contiguous()?);
        return q.apply_op3(&kv, &mask, ops::CrossAttention { heads });
    }
    let [k, v] = halves(kv)?;
    attend(q, &k, &v, bias, heads)
}

/// The numbers that a mask with numbers adds; `None` for a mask without.
fn added(mask: Option<&Mask>) -> Option<Option<&Tensor>> {
    match mask {
        None => Some(None),
        Some(mask) => mask.added().map(Some),
    }
}

/// Slices know no shapes.
fn check_sizes(q: &Tensor, kv: &Tensor, mask: Option<&Tensor>, heads: usize) -> Result<()> {
    let ((b, n, d), (kv_b, m, packed)) = (q.dims3()?, kv.dims3()?);
    if b != kv_b || packed != 2 * d {
        let (q, kv) = (q.dims(), kv.dims());
        candle_core::bail!("queries {q:?} cannot ask keys and values {kv:?}");
    }
    check_heads(packed, 2, heads)?;
    check_mask(mask, [b, n, m])
}

/// `packed` holds `parts` of one width, which the heads share.
fn check_heads(packed: usize, parts: usize, heads: usize) -> Result<()> {
    if heads == 0 || !packed.is_multiple_of(parts * heads) {
        candle_core::bail!("{heads} heads do not divide a width of {}", packed / parts);
    }
    Ok(())
}

fn check_mask(mask: Option<&Tensor>, [b, n, m]: [usize; 3]) -> Result<()> {
    match mask.map(Tensor::dims) {
        Some(dims) if *dims != [b, m] && *dims != [b, n, m] => {
            candle_core::bail!("a mask of {dims:?} for {b} sequences of {n} queries and {m} keys")
        }
        _ => Ok(()),
    }
}

/// Keys and values of `kv: (b, m, 2 d)`, views of `(b, m, d)` each.
pub(crate) fn halves(kv: &Tensor) -> Result<[Tensor; 2]> {
    let d = kv.dim(D::Minus1)? / 2;
    let part = |which: usize| kv.narrow(D::Minus1, which * d, d);
    Ok([part(0)?, part(1)?])
}

/// Attention as [`attend`] has it, from packed `qkv: (b, n, 3 d)` to `(b, queries, d)`, where only
/// the first `queries` tokens ask.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn attend_packed(qkv: &Tensor, heads: usize, queries: usize, bias: Bias<'_>) -> Result<Tensor> {
    let n = qkv.dim(1)?;
    let queries = queries.min(n);
    // The first queries of a causal mask or of one of pairs see what they see among all.
    let mask = match bias.mask {
        Some(Mask::Causal) if queries < n => {
            candle_core::bail!("the first tokens of a causal sequence alone")
        }
        Some(Mask::Pairs(added)) if queries < n => {
            Some(Mask::Pairs(added.narrow(1, 0, queries)?.contiguous()?))
        }
        mask => mask.cloned(),
    };
    if let (true, Some(mask)) = (cpu::takes(qkv), added(mask.as_ref())) {
        let (b, _, packed) = qkv.dims3()?;
        check_heads(packed, 3, heads)?;
        check_mask(mask, [b, queries, n])?;
        let nothing = Tensor::zeros(0, DType::F32, qkv.device())?;
        let pairs = bias.pairs.unwrap_or(&nothing).contiguous()?;
        let mask = mask.unwrap_or(&nothing).contiguous()?;
        let op = ops::Attention { heads, queries };
        return qkv.contiguous()?.apply_op3(&pairs, &mask, op);
    }
    let [q, k, v] = unpack(qkv)?;
    let q = q.narrow(1, 0, queries)?;
    let pairs = bias.pairs.map(|pairs| pairs.narrow(1, 0, queries));
    let pairs = pairs.transpose()?;
    let bias = Bias {
        pairs: pairs.as_ref(),
        mask: mask.as_ref(),
    };
    attend(&q, &k, &v, bias, heads)
}

/// Queries, keys and values of packed `qkv: (b, n, 3 d)`, views of `(b, n, d)` each.
pub(crate) fn unpack(qkv: &Tensor) -> Result<[Tensor; 3]> {
    let (_, _, packed) = qkv.dims3()?;
    let d = packed / 3;
    let part = |which: usize| qkv.narrow(D::Minus1, which * d, d);
    Ok([part(0)?, part(1)?, part(2)?])
}

/// Softmax of the scores, `(b, h, n, m)`: how each query of `q: (b, n, d)` shares its attention among
/// the keys of `k: (b, m, d)`. A query that sees no key has zeros.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn attention_shares(q: &Tensor, k: &Tensor, bias: Bias<'_>, heads: usize) -> Result<Tensor> {
    let (n, m) = (q.dim(1)?, k.dim(1)?);
    let (q, k) = (split(q, heads)?, split(k, heads)?);
    let q = (&q * (1.0 / (q.dim(D::Minus1)? as f64).sqrt()))?;
    let scores = q.contiguous()?.matmul(&k.t()?.contiguous()?)?; // (b, h, n, m)
    let mut scores = match scores.dtype() {
        DType::F16 | DType::BF16 => scores.to_dtype(DType::F32)?,
        _ => scores,
    };
    if let Some(pairs) = bias.pairs {
        let pairs = pairs.to_dtype(scores.dtype())?;
        scores = scores.broadcast_add(&pairs.unsqueeze(0)?)?;
    }
    if let Some(mask) = bias.mask {
        let added = mask.for_scores(n, m, scores.device())?;
        scores = scores.broadcast_add(&added.to_dtype(scores.dtype())?)?;
    }
    // Composed of operations with a gradient: the fused softmax of candle has none. Where all is
    // hidden by −∞ the largest score is −∞ too; a finite one in its place makes every share 0.
    let largest = scores.max_keepdim(D::Minus1)?.detach();
    let largest = largest.maximum(f64::from(f32::MIN))?;
    let raised = scores.broadcast_sub(&largest)?.exp()?;
    let sum = raised.sum_keepdim(D::Minus1)?;
    let nothing = sum.detach().eq(0.0)?.to_dtype(sum.dtype())?;
    raised.broadcast_div(&(sum + nothing)?)
}

/// `shares: (b, h, n, m)` of `v: (b, m, d)`, giving `(b, n, d)`.
///
/// # Errors
/// When shapes do not fit or the device fails.
pub fn mix(shares: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (b, heads, n, _) = shares.dims4()?;
    let d = v.dim(D::Minus1)?;
    let mixed = shares.to_dtype(v.dtype())?.matmul(&split(v, heads)?)?; // (b, h, n, e)
    mixed.transpose(1, 2)?.contiguous()?.reshape((b, n, d))
}

/// `(b, n, d) -> (b, h, n, d / h)`.
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, n, d) = x.dims3()?;
    if heads == 0 || !d.is_multiple_of(heads) {
        candle_core::bail!("{heads} heads do not divide a width of {d}");
    }
    let x = x.contiguous()?.reshape((b, n, heads, d / heads))?;
    x.transpose(1, 2)?.contiguous()
}
