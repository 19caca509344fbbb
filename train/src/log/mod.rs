//! What happens, as JSON lines and as event files of TensorBoard.
