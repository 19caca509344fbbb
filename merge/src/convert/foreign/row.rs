//! A row of a naming: a name there, a name here, and the change of axes between them.

use crate::io::row_major;

/// The mark of a layer's number in names.
pub(super) const NUMBER: &str = "{n}";

/// The most digits of the number of a layer.
const MAX_DIGITS: usize = 6;

/// A row.
pub(super) struct Row {
    /// The name there, with [`NUMBER`] where it has one. Without it and what stands before it (`block_{n}` is `block` then)
    /// the tensor holds all layers, along its first axis.
    from: &'static str,
    /// The name of Hugging Face.
    to: &'static str,
    form: Form,
}

/// A row whose axes stay.
pub(super) const fn same(from: &'static str, to: &'static str) -> Row {
    row(from, to, Form::Same)
}

/// A row.
pub(super) const fn row(from: &'static str, to: &'static str, form: Form) -> Row {
    Row { from, to, form }
}

/// The axes of a tensor there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As here.
    Same,
    /// `(in, out)`, here `(out, in)`.
    Turned,
    /// `(height, width, in, out)`, here `(out, in, height, width)`.
    Convolution,
    /// `(in, heads, width)`, here `(heads · width, in)`.
    IntoHeads,
    /// `(heads, width, out)`, here `(out, heads · width)`.
    OutOfHeads,
    /// `(heads, width)`, here one axis.
    PerHead,
    /// `(1, rows, width)`, here a matrix.
    OneMatrix,
    /// `(1)`, here no axis.
    One,
}

/// A shape, and the sizes of axes with the distances of neighbors along them.
type Axes = (Vec<usize>, Vec<usize>, Vec<u64>);

impl Form {
    /// The shape here, and the axes that its elements are read along; `None` for another number of axes.
    pub(super) fn axes(self, shape: &[usize]) -> Option<Axes> {
        let strides = row_major(shape);
        let by = |order: &[usize], shape: Vec<usize>, sizes: &[usize]| {
            let sizes = order.iter().map(|&axis| sizes[axis]).collect();
            let strides = order.iter().map(|&axis| strides[axis]).collect();
            Some((shape, sizes, strides))
        };
        match (self, shape) {
            (Self::Same, _) => Some((shape.to_vec(), shape.to_vec(), strides.clone())),
            (Self::Turned, &[rows, columns]) => by(&[1, 0], vec![columns, rows], shape),
            (Self::Convolution, &[high, wide, inputs, outputs]) => {
                by(&[3, 2, 0, 1], vec![outputs, inputs, high, wide], shape)
            }
            (Self::IntoHeads, &[inputs, heads, width]) => {
                by(&[1, 2, 0], vec![heads.checked_mul(width)?, inputs], shape)
            }
            (Self::OutOfHeads, &[heads, width, outputs]) => {
                by(&[2, 0, 1], vec![outputs, heads.checked_mul(width)?], shape)
            }
            (Self::PerHead, &[heads, width]) => by(&[0, 1], vec![heads.checked_mul(width)?], shape),
            (Self::OneMatrix, &[1, rows, width]) => by(&[1, 2], vec![rows, width], shape),
            (Self::One, &[1] | &[]) => Some((Vec::new(), Vec::new(), Vec::new())),
            _ => None,
        }
    }

    /// The axes there, in words.
    pub(super) const fn in_words(self) -> &'static str {
        match self {
            Self::Same => "as in torch",
            Self::Turned => "(in, out)",
            Self::Convolution => "(height, width, in, out)",
            Self::IntoHeads => "(in, heads, width)",
            Self::OutOfHeads => "(heads, width, out)",
            Self::PerHead => "(heads, width)",
            Self::OneMatrix => "(1, rows, width)",
            Self::One => "(1)",
        }
    }
}

impl Row {
    /// The name of Hugging Face for a name there, whether the tensor holds all layers, and its axes; `None` for another
    /// name. Where a reader gives names of torch already, names there are those of Hugging Face.
    pub(super) fn place(&self, name: &str, is_torch: bool) -> Option<(String, bool, Form)> {
        let (from, form) = match is_torch {
            true => (self.to, Form::Same),
            false => (self.from, self.form),
        };
        let Some((before, after)) = from.split_once(NUMBER) else {
            return (name == from).then(|| (self.to.to_owned(), false, form));
        };
        let number = (name.strip_prefix(before)).and_then(|rest| rest.strip_suffix(after));
        if let Some(number) = number.filter(|number| is_number(number)) {
            return Some((self.to.replacen(NUMBER, number, 1), false, form));
        }
        let before = before.strip_suffix('_')?;
        let is_all = name.strip_prefix(before) == Some(after);
        is_all.then(|| (self.to.to_owned(), true, form))
    }
}

/// Whether it is a whole number as programs write it.
fn is_number(text: &str) -> bool {
    let is_canonical = text == "0" || !text.starts_with('0');
    is_canonical
        && (1..=MAX_DIGITS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_number_or_stands_for_all_layers() {
        let turned = row(
            "layer_{n}/query/kernel",
            "layers.{n}.q.weight",
            Form::Turned,
        );
        let place = |name| turned.place(name, false);
        let third = Some(("layers.3.q.weight".to_owned(), false, Form::Turned));
        assert_eq!(place("layer_3/query/kernel"), third);
        let all = Some(("layers.{n}.q.weight".to_owned(), true, Form::Turned));
        assert_eq!(place("layer/query/kernel"), all);
        for other in [
            "layer_03/query/kernel",
            "layer_/query/kernel",
            "layer_3/query/bias",
        ] {
            assert_eq!(place(other), None, "{other}");
        }
        let here = Some(("layers.3.q.weight".to_owned(), false, Form::Same));
        assert_eq!(turned.place("layers.3.q.weight", true), here);
    }

    #[test]
    fn axes_are_exchanged_and_joined() {
        let axes = |form: Form, shape: &[usize]| form.axes(shape).expect("fits");
        assert_eq!(
            axes(Form::Turned, &[2, 3]),
            (vec![3, 2], vec![3, 2], vec![1, 3])
        );
        let (shape, sizes, strides) = axes(Form::IntoHeads, &[8, 2, 4]);
        assert_eq!(
            (shape, sizes, strides),
            (vec![8, 8], vec![2, 4, 8], vec![4, 1, 8])
        );
        let (shape, _, strides) = axes(Form::OutOfHeads, &[2, 4, 8]);
        assert_eq!((shape, strides), (vec![8, 8], vec![1, 32, 8]));
        assert_eq!(Form::Turned.axes(&[2]), None);
        assert_eq!(Form::OneMatrix.axes(&[2, 3, 4]), None);
    }
}
