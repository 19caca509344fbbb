//! Random views of pictures, and masked words.
