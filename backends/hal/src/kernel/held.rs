//! Code and names that are part of the program, or owned by whoever made them at run time.
//!
//! **Guarantee.** What a [`Held`] derefs to stays where it is for as long as some clone lives, detached or not, so that its
//! address stands for its contents.
//!
//! **Two kinds of clone.** A plain clone counts as a user of the value; a [detached](Held::detached) one keeps the value and does
//! not count. Devices keep detached clones, and a [`Watch`] tells them when the last user is gone.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

/// A value that is `'static`, or shared by those who use it. Cheap to clone.
///
/// ```
/// use sterna_hal::kernel::Held;
/// let (known, made): (Held<str>, Held<str>) = ("main".into(), format!("entry_{}", 7).into());
/// assert_eq!((&*known, &*made), ("main", "entry_7"));
/// ```
pub struct Held<T: ?Sized + 'static>(Kind<T>);

enum Kind<T: ?Sized + 'static> {
    Static(&'static T),
    /// The outer count is of users, the inner one of all who need the value to stay.
    Owned(Arc<Arc<T>>),
}

/// Tells whether a value has users left. See [`Held::watch`].
#[derive(Debug)]
pub struct Watch<T: ?Sized>(Option<Weak<Arc<T>>>);

impl<T: ?Sized> Watch<T> {
    /// Whether nobody uses the value any more, and nobody can again. Never of a value that is part of the program.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.as_ref().is_some_and(|users| users.strong_count() == 0)
    }
}

impl<T: ?Sized> Held<T> {
    /// A value that is part of the program.
    #[must_use]
    pub const fn of_static(value: &'static T) -> Self {
        Self(Kind::Static(value))
    }

    /// A clone that keeps the value and does not count as a user of it.
    #[must_use]
    pub fn detached(&self) -> Self {
        match &self.0 {
            Kind::Static(value) => Self(Kind::Static(value)),
            Kind::Owned(value) => Self(Kind::Owned(Arc::new(Arc::clone(value)))),
        }
    }

    /// Tells later whether this clone and those made of it are gone.
    #[must_use]
    pub fn watch(&self) -> Watch<T> {
        match &self.0 {
            Kind::Static(_) => Watch(None),
            Kind::Owned(value) => Watch(Some(Arc::downgrade(value))),
        }
    }
}

impl<T: ?Sized> Deref for Held<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match &self.0 {
            Kind::Static(value) => value,
            Kind::Owned(value) => value,
        }
    }
}

impl<T: ?Sized> Clone for Held<T> {
    fn clone(&self) -> Self {
        match &self.0 {
            Kind::Static(value) => Self(Kind::Static(value)),
            Kind::Owned(value) => Self(Kind::Owned(Arc::clone(value))),
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized> From<&'static T> for Held<T> {
    fn from(value: &'static T) -> Self {
        Self::of_static(value)
    }
}

impl<T: ?Sized> From<Arc<T>> for Held<T> {
    fn from(value: Arc<T>) -> Self {
        Self(Kind::Owned(Arc::new(value)))
    }
}

impl From<String> for Held<str> {
    fn from(value: String) -> Self {
        Arc::<str>::from(value).into()
    }
}

impl From<Vec<u8>> for Held<[u8]> {
    fn from(value: Vec<u8>) -> Self {
        Arc::<[u8]>::from(value).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detached_clones_keep_the_value_and_are_no_users() {
        let first = Held::from(vec![1_u8, 2, 3]);
        let (second, kept, watch) = (first.clone(), first.detached(), first.watch());
        assert_eq!(kept.as_ptr(), first.as_ptr());
        drop(first);
        assert!(!watch.is_gone());
        drop(second);
        assert!(watch.is_gone());
        assert_eq!(*kept, [1, 2, 3]);
        assert!(!Held::<[u8]>::of_static(&[1]).watch().is_gone());
    }
}
