//! Text length and image window, from buffers and from the rows of position tables.

use super::{Findings, Survey};

/// Text positions that the published bias tables have room for.
const PUBLISHED_TEXT_TABLE_LEN: usize = 196;

impl Survey<'_> {
    pub(super) fn measure_positions(&self, sizes: &mut Findings) {
        let dimensions = &mut sizes.dimensions;
        dimensions.text_len = self
            .axis("text_relative_position_index", 0)
            .or_else(|| self.axis("text_embeddings.position_embeddings.weight", 0))
            .or_else(|| self.axis("text_embeddings.position_ids", 1));
        dimensions.patch_size = self
            .axis("transformer.patch_embed.proj.weight", 2)
            .or_else(|| self.stored("patch_size"));
        let (text_len, patch_size) = (dimensions.text_len, dimensions.patch_size);
        sizes.compare("max_text_len", self.stored("max_text_len"), text_len);
        sizes.compare("patch_size", self.stored("patch_size"), patch_size);

        let Some((side, source)) = self.window(sizes) else {
            return;
        };
        let stored = self.stored("image_size");
        // An image that is not a whole number of patches loses its border in the window.
        let exact = patch_size
            .and_then(|patch| stored.filter(|image| image.checked_div(patch) == Some(side)));
        let image = exact.or_else(|| patch_size.and_then(|patch| patch.checked_mul(side)));
        sizes.compare("image_size", stored, image);
        sizes.dimensions.image_size = image;
        let pixels = image.map_or_else(String::new, |image| format!(" = {image} px"));
        sizes
            .evidence
            .push(format!("image window {side}x{side}{pixels} from {source}"));
    }

    /// Side of the image window in patches with the words for where it was found; sets the text
    /// length of the bias table on the way.
    fn window(&self, sizes: &mut Findings) -> Option<(usize, String)> {
        let stored_text = self.stored("max_text_len_of_initckpt");
        let known_text = self.record.text_table_len.or(stored_text);
        let table = self.axis("relative_position_bias_table", 0);
        let index = self.axis("relative_position_index", 0);
        let positions = self.axis("transformer.pos_embed", 1);
        if let Some((tokens, name)) = index
            .map(|tokens| (tokens, "relative_position_index"))
            .or(positions.map(|tokens| (tokens, "transformer.pos_embed")))
        {
            let side = exact_root(tokens.checked_sub(1)?)?;
            let text = table.and_then(|rows| text_rows(rows, side));
            sizes.compare("max_text_len_of_initckpt", stored_text, text);
            sizes.dimensions.text_table_len = text.or(known_text);
            return Some((side, format!("`{name}` for {tokens} tokens")));
        }
        if let Some(rows) = self.image_table_rows() {
            let side = window_of(rows, 0)?;
            return Some((side, format!("{rows} rows of the bias table")));
        }
        let rows = table?;
        let fits = |text: usize| window_of(rows, text.checked_mul(2)?.checked_add(2)?);
        let by_size = match (self.stored("image_size"), sizes.dimensions.patch_size) {
            (Some(image), Some(patch)) => image.checked_div(patch),
            _ => None,
        };
        let found = known_text
            .and_then(|text| Some((text, fits(text)?)))
            .or_else(|| by_size.and_then(|side| Some((text_rows(rows, side)?, side))))
            .or_else(|| Some((PUBLISHED_TEXT_TABLE_LEN, fits(PUBLISHED_TEXT_TABLE_LEN)?)));
        let Some((text, side)) = found else {
            sizes.evidence.push(format!(
                "image window unknown: {rows} rows of the bias table do not tell image and text apart"
            ));
            return None;
        };
        sizes.dimensions.text_table_len = Some(text);
        Some((
            side,
            format!(
                "{rows} rows of the bias table, {} of them for {text} text positions",
                2 * text + 2
            ),
        ))
    }

    /// Rows of a BEiT table, whether all blocks share it or not.
    fn image_table_rows(&self) -> Option<usize> {
        self.outer
            .iter()
            .find(|(key, _)| {
                key.ends_with(".attn.relative_position_bias_table")
                    || *key == "transformer.rel_pos_bias.relative_position_bias_table"
            })
            .and_then(|(_, info)| info.shape.first().copied())
    }
}

/// Side of the image window of a table with `rows` rows, `text_rows` of which are not the image's.
fn window_of(rows: usize, text_rows: usize) -> Option<usize> {
    let image = rows.checked_sub(text_rows)?.checked_sub(3)?;
    let side = exact_root(image)?;
    (side % 2 == 1).then_some(side.div_ceil(2))
}

/// Text positions that a table of `rows` rows has room for beside a window of `side` patches.
fn text_rows(rows: usize, side: usize) -> Option<usize> {
    let image = side.checked_mul(2)?.checked_sub(1)?.checked_pow(2)?;
    let text = rows.checked_sub(image)?.checked_sub(5)?;
    (text > 0 && text % 2 == 0).then_some(text / 2)
}

fn exact_root(square: usize) -> Option<usize> {
    let root = square.isqrt();
    (root > 0 && root * root == square).then_some(root)
}
