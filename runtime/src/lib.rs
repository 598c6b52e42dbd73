//! sterna.
