"""The files that the stages hand to each other: what each is named, holds and promises."""
