//! An adapter that learns answers (SFT) or reasoning (RFT): rows of a fine-tuning run, and the run.
