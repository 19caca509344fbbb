//! How much text a file may hold: a dictionary makes much of little.

/// Texts of a column are at most this many times the bytes of their file.
const MAX_REPEATS: u64 = 256;

/// The most text of a column.
const MAX_BYTES: u64 = 4 << 30;

/// The text that a column may still have.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextBudget {
    n_left: u64,
}

impl TextBudget {
    /// For a column of a file of `n_bytes`.
    pub(super) fn of_file(n_bytes: u64) -> Self {
        Self {
            n_left: MAX_BYTES.min(n_bytes.saturating_mul(MAX_REPEATS)),
        }
    }

    /// Takes the bytes of a text.
    ///
    /// # Errors
    /// In words when the texts before it leave no room.
    pub(super) fn take(&mut self, n_bytes: usize) -> Result<(), String> {
        let left = self.n_left.checked_sub(n_bytes as u64);
        self.n_left = left.ok_or_else(|| {
            format!("its texts take more than {MAX_REPEATS} times the bytes of the file, or 4 GiB")
        })?;
        Ok(())
    }
}
