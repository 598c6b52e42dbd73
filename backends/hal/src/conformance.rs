//! One suite over `&dyn Device`.
