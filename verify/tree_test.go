package verify

import "testing"

func TestReference(t *testing.T) {
	items := []item{dir("."), dir("d"), file("d/f", "hello"), symlink("l", "d/f"), hardlink("h", "d/f"), file("x", "y").xattr("user.a", "b")}
	image := reference(t, items)
	r := wantSame(t, image, layersOf(t, items))
	t.Logf("%+v", r)
}
