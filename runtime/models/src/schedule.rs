//! The checker chooses who goes next by itself.

use crate::sync::MutexGuard;

pub fn point() {}

pub fn gives_way<T>(_: &mut MutexGuard<'_, T>) -> bool {
    false
}
