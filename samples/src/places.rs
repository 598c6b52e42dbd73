//! Where the pages of an allocation are, as a line of characters.

#![forbid(unsafe_code)]

use anyhow::Result;
use sterna::bytemuck::Pod;
use sterna::{Residency, Shared};

/// What the characters mean.
pub const LEGEND: &str = "# on a device   . on the host   = on both   : some here, some there";

/// Draws where the pages are, from the first to the last, in at most `cells` characters.
///
/// # Errors
/// None in practice: the ranges asked for lie inside.
pub fn bar<T: Pod + Send + Sync>(x: &Shared<T>, cells: usize) -> Result<String> {
    let cells = cells.clamp(1, x.len());
    let mut line = String::from("[");
    for i in 0..cells {
        line.push(mark(&x.range(i * x.len() / cells..(i + 1) * x.len() / cells)?.residency()));
    }
    line.push(']');
    Ok(line)
}

/// One character for all pages of a part.
fn mark(part: &Residency) -> char {
    let device: u64 = part.devices.iter().map(|d| d.pages).sum();
    match (part.host, device) {
        _ if part.lost > 0 => '!',
        (_, 0) => '.',
        (0, _) => '#',
        _ if part.replicated == part.pages => '=',
        _ => ':',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices;

    #[test]
    fn follows_the_pages() {
        let rt = devices::open(Some(64 << 20)).unwrap();
        let mut x = rt.shared::<f32>(1 << 20).unwrap();
        assert_eq!(bar(&x, 8).unwrap(), "[........]");
        let mut first = x.range_mut(..1 << 19).unwrap();
        rt.launch(&sterna::kernels::fill(1.0_f32), (&mut first,)).unwrap().wait().unwrap();
        assert_eq!(&bar(&x, 8).unwrap()[5..], "....]");
        assert!(bar(&x, 8).unwrap()[1..5].chars().all(|c| "#=".contains(c)));
        assert_eq!(bar(&rt.shared::<f32>(3).unwrap(), 8).unwrap(), "[...]");
    }
}
