//! The subject is found and kept: on drawn pictures wherever it stands, and on photographs.

use granary_engine::{RetainLocation, crop};

use crate::scene::{self, BACKGROUNDS, SUBJECTS, Spot};

/// A rectangle of a source picture, in its pixels.
#[derive(Debug, Clone, Copy)]
struct Area {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Area {
    fn holds(&self, other: Area) -> bool {
        self.left <= other.left
            && self.top <= other.top
            && self.right >= other.right
            && self.bottom >= other.bottom
    }
}

/// Returns the part of a source of `size` that a new picture of `target` shows.
fn kept(placement: RetainLocation, size: (u32, u32), target: (u32, u32)) -> Area {
    let across = f64::from(size.0) / f64::from(placement.width);
    let down = f64::from(size.1) / f64::from(placement.height);
    Area {
        left: f64::from(-placement.x) * across,
        top: f64::from(-placement.y) * down,
        right: f64::from(target.0 as i32 - placement.x) * across,
        bottom: f64::from(target.1 as i32 - placement.y) * down,
    }
}

/// Returns the part of a source that a crop around the middle would show.
fn centre_kept(size: (u32, u32), target: (u32, u32)) -> Area {
    let (width, height) = (f64::from(size.0), f64::from(size.1));
    let scale = (f64::from(target.0) / width).max(f64::from(target.1) / height);
    let (half_width, half_height) = (f64::from(target.0) / scale / 2.0, f64::from(target.1) / scale / 2.0);
    Area {
        left: width / 2.0 - half_width,
        top: height / 2.0 - half_height,
        right: width / 2.0 + half_width,
        bottom: height / 2.0 + half_height,
    }
}

const PLACES: [(u32, u32); 9] = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)];

/// Crops every subject on every background in nine places; each has to be kept whole.
fn check_nine_places(size: (u32, u32), target: (u32, u32), subject_size: u32) {
    let spot = |(column, row): (u32, u32)| Spot {
        x: size.0 * (2 * column + 1) / 6 - subject_size / 2,
        y: size.1 * (2 * row + 1) / 6 - subject_size / 2,
        size: subject_size,
    };
    let lost_by_centre_crop =
        PLACES.iter().filter(|&&place| !centre_kept(size, target).holds(spot(place).into())).count();
    assert!(lost_by_centre_crop >= 6, "too easy: {lost_by_centre_crop}");
    let mut lost = Vec::new();
    for background in BACKGROUNDS {
        for subject in SUBJECTS {
            for place in PLACES {
                let at = spot(place);
                let picture = scene::draw(size.0, size.1, background, subject, at);
                let crop = crop(&picture, target.0, target.1).unwrap();
                if !kept(crop.retain_location, size, target).holds(at.into()) {
                    lost.push((background, subject, place));
                }
            }
        }
    }
    assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
}

impl From<Spot> for Area {
    fn from(spot: Spot) -> Self {
        Area {
            left: spot.x.into(),
            top: spot.y.into(),
            right: (spot.x + spot.size).into(),
            bottom: (spot.y + spot.size).into(),
        }
    }
}

#[test]
fn a_subject_anywhere_in_a_wide_picture_is_kept_whole_in_a_tall_one() {
    check_nine_places((360, 240), (100, 200), 64);
}

#[test]
fn a_subject_anywhere_in_a_tall_picture_is_kept_whole_in_a_wide_one() {
    check_nine_places((240, 360), (200, 100), 64);
}

#[test]
fn a_small_subject_anywhere_is_kept_whole_in_a_nearly_square_picture() {
    check_nine_places((360, 240), (180, 200), 32);
    check_nine_places((240, 360), (200, 180), 32);
}

const ROCKET: &[u8] = include_bytes!("../../../tests/images/rocket.jpg");
const ASTRONAUT: &[u8] = include_bytes!("../../../tests/images/astronaut.png");

/// The rocket from its tip to the top of its launch mount.
const ROCKET_AREA: Area = Area { left: 298.0, top: 130.0, right: 352.0, bottom: 415.0 };

/// The head from hair to chin.
const HEAD_AREA: Area = Area { left: 150.0, top: 12.0, right: 302.0, bottom: 195.0 };

const SHAPES: [(u32, u32); 6] = [(300, 300), (400, 200), (200, 400), (160, 90), (90, 120), (1200, 628)];

#[test]
fn the_rocket_is_kept_at_square_wide_and_tall_targets() {
    for target in SHAPES {
        let crop = crop(ROCKET, target.0, target.1).unwrap();
        let kept = kept(crop.retain_location, (640, 427), target);
        assert!(kept.holds(ROCKET_AREA), "{target:?}: {kept:?}");
    }
}

#[test]
fn the_astronauts_head_is_kept_at_square_wide_and_tall_targets() {
    for target in SHAPES {
        let crop = crop(ASTRONAUT, target.0, target.1).unwrap();
        let kept = kept(crop.retain_location, (512, 512), target);
        assert!(kept.holds(HEAD_AREA), "{target:?}: {kept:?}");
    }
}

#[test]
fn the_astronauts_head_is_kept_when_the_picture_is_mirrored_or_darker() {
    let picture = image::load_from_memory(ASTRONAUT).unwrap();
    let mirrored = Area { left: 512.0 - HEAD_AREA.right, right: 512.0 - HEAD_AREA.left, ..HEAD_AREA };
    for (picture, head) in [(picture.fliph(), mirrored), (picture.brighten(-60), HEAD_AREA)] {
        let picture = scene::png(&picture.to_rgb8());
        for target in SHAPES {
            let crop = crop(&picture, target.0, target.1).unwrap();
            let kept = kept(crop.retain_location, (512, 512), target);
            assert!(kept.holds(head), "{target:?}: {kept:?}");
        }
    }
}
