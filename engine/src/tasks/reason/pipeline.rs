//! The whole task in order, stage by stage; what is done already is left out.
