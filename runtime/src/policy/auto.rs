//! Moves pages to a device where that gains something.

use super::{Declared, LaunchEvent, Place, Policy, Remote};

/// As [`Remote`] on a device whose memory is the host's ([`Caps::unified`](sterna_hal::Caps::unified)), else as [`Declared`].
#[derive(Clone, Copy, Default, Debug)]
pub struct Auto;

impl Policy for Auto {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn launch(&mut self, event: &LaunchEvent<'_>, places: &mut Vec<Place>) {
        if event.caps.unified { Remote.launch(event, places) } else { Declared.launch(event, places) }
    }
}
