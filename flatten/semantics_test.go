package flatten

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"thaw/verify"
)

// semantics are layers and the tree that they make, in the language of parse;
// a want that begins with "!" is a part of the refusal.
var semantics = []struct {
	about  string
	layers []string
	want   string
}{
	{"whiteout of a file", []string{"a=1 b=2", ".wh.a"}, "b=2"},
	{"whiteout of a tree", []string{"d/ d/e/ d/e/f=1", ".wh.d"}, ""},
	{"whiteout before what the layer adds", []string{"a=1", ".wh.a a=2"}, "a=2"},
	{"whiteout behind what the layer adds", []string{"a=1", "a=2 .wh.a"}, "a=2"},
	{"whiteout of a directory that gets a file first", []string{"d/ d/old=1", "d/new=2 .wh.d"}, "d/ d/new=2"},
	{"whiteout of a directory that gets a file later", []string{"d/ d/old=1", ".wh.d d/new=2"}, "d/ d/new=2"},
	{"whiteout deep in what stays", []string{"d/ d/e/ d/e/old=1 d/o/ d/o/x=1", "d/e/new=2 .wh.d"}, "d/ d/e/ d/e/new=2"},
	{"whiteout of a directory that the layer names", []string{"d/ d/old=1", "d/ .wh.d"}, "d/"},
	{"whiteout of what is not there", []string{"a=1", ".wh.no no/such/.wh.x"}, "a=1"},
	{"whiteout of the layer's own file", []string{"a=1 .wh.a"}, "a=1"},
	{"whiteout that is a directory", []string{"a=1", ".wh.a/"}, ""},
	{"whiteout that is a link", []string{"a=1", ".wh.a=>nothing"}, ""},
	{"whiteout of a symlink, not its target", []string{"a=1 l->a", ".wh.l"}, "a=1"},
	{"whiteout behind a symlink", []string{"r/ r/f=1 l->r", "l/.wh.f"}, "l->r r/"},
	{"whiteout of one name of two", []string{"a=1 b=>a", ".wh.a"}, "b=1"},
	{"whiteout of what a link has saved", []string{"a=1", "b=>a .wh.a"}, "b=1"},
	{"whiteout before a link to it", []string{"a=1", ".wh.a b=>a"}, "!does not exist"},
	{"whiteout two layers down", []string{"a=1", "b=2", ".wh.a"}, "b=2"},
	{"whiteout, and back again", []string{"a=1", ".wh.a", "a=3"}, "a=3"},
	{"whiteout in a file", []string{"a=1", "a/.wh.x"}, "!not a directory"},
	{"whiteout of nothing", []string{".wh."}, "!whiteout of nothing"},
	{"whiteout of .", []string{".wh.."}, "!whiteout of nothing"},
	{"whiteout of ..", []string{"d/.wh..."}, "!whiteout of nothing"},
	{"whiteout of a name that begins with dots", []string{"...=1 ..x=2", ".wh...."}, "..x=2"},
	{"AUFS bookkeeping", []string{"a=1 .wh..wh.plnk/ .wh..wh.orph=1 .wh..wh.aufs=2"}, "a=1"},

	{"opaque before", []string{"d/ d/old=1", "d/ d/.wh..wh..opq d/new=2"}, "d/ d/new=2"},
	{"opaque behind", []string{"d/ d/old=1", "d/ d/new=2 d/.wh..wh..opq"}, "d/ d/new=2"},
	{"opaque of a directory that the layer does not name", []string{"d/ d/old=1 e=1", "d/.wh..wh..opq"}, "d/ e=1"},
	{"opaque with a directory that stays", []string{"d/ d/s/ d/s/old=1 d/t/", "d/s/new=2 d/.wh..wh..opq"}, "d/ d/s/ d/s/new=2"},
	{"opaque root", []string{"a=1 b/ b/c=2", "n=3 .wh..wh..opq"}, "n=3"},
	{"opaque and not there", []string{"a=1", "no/.wh..wh..opq"}, "a=1"},
	{"opaque behind a symlink", []string{"r/ r/f=1 l->r", "l/.wh..wh..opq"}, "l->r r/"},
	{"opaque in the first layer", []string{"d/ d/.wh..wh..opq d/f=1"}, "d/ d/f=1"},

	{"link", []string{"a=1 b=>a"}, "a=1 b=>a"},
	{"link across layers", []string{"a=1", "b=>a"}, "a=1 b=>a"},
	{"link before its target", []string{"b=>a a=1"}, "a=1 b=>a"},
	{"links that wait for one another", []string{"d=>c c=>b b=>a a=1"}, "a=1 b=>a c=>a d=>a"},
	{"link into a directory that comes later", []string{"b=>d/a d/ d/a=1"}, "b=1 d/ d/a=>b"},
	{"links in a circle", []string{"a=>b b=>a"}, "!does not exist"},
	{"link to itself", []string{"a=1 a=>a"}, "a=1"},
	{"link to itself, alone", []string{"a=>a"}, "!does not exist"},
	{"link to another name of it", []string{"a=1 b=>a a=>b"}, "a=1 b=>a"},
	{"link that is there already, and a whiteout", []string{"a=1 b=>a", "b=>a .wh.b"}, "a=1 b=>a"},
	{"link to itself, and a whiteout", []string{"a=1 c=2", "a=>a .wh.a"}, "c=2"},
	{"link to nothing", []string{"a=>b"}, "!does not exist"},
	{"link to what is hidden", []string{"a=1", ".wh.a", "b=>a"}, "!does not exist"},
	{"link to a directory", []string{"d/ a=>d"}, "!a directory"},
	{"link to the root", []string{"a=>."}, "!the root"},
	{"link in place of the root", []string{"a=1 .=>a"}, "!the root can be nothing but a directory"},
	{"link out of the tree", []string{"a=>../b"}, "!escapes"},
	{"link to a symlink", []string{"s->x b=>s"}, "b->x s=>b"},
	{"link to a FIFO", []string{"p| q=>p"}, "p| q=>p"},
	{"link to a device", []string{"c% z=>c"}, "c% z=>c"},
	{"link through a symlink", []string{"d/ d/f=1 l->d h=>l/f"}, "d/ d/f=1 h=>d/f l->d"},
	{"link whose own parent is a symlink", []string{"d/ l->d f=1 l/h=>f"}, "d/ d/h=1 f=>d/h l->d"},
	{"link with a leading slash", []string{"d/f=1 h=>/d/f"}, "d/ d/f=1 h=>d/f"},
	{"link in place of a file", []string{"a=1 b=2", "b=>a"}, "a=1 b=>a"},
	{"link in place of a directory", []string{"a=1 d/ d/f=2", "d=>a"}, "a=1 d=>a"},
	{"link in place of what holds its target", []string{"d/ d/f=2", "d=>d/f"}, "!inside of what it replaces"},
	{"file in place of one name", []string{"a=1 b=>a", "a=2"}, "a=2 b=1"},
	{"link in a missing directory", []string{"a=1 x/y/b=>a"}, "a=1 x/ x/y/ x/y/b=>a"},

	{"missing parents", []string{"a/b/c=1"}, "a/ a/b/ a/b/c=1"},
	{"parent behind a relative symlink", []string{"x/ x/r/ x/l->r", "x/l/f=1"}, "x/ x/l->r x/r/ x/r/f=1"},
	{"parent behind an absolute symlink", []string{"x/ r/ x/l->/r", "x/l/f=1"}, "r/ r/f=1 x/ x/l->/r"},
	{"parent behind a symlink with ..", []string{"x/ r/ x/l->../r", "x/l/f=1"}, "r/ r/f=1 x/ x/l->../r"},
	{"parent above the root", []string{"r/ l->../../../r", "l/f=1"}, "l->../../../r r/ r/f=1"},
	{"parent that is the root", []string{"l->/", "l/f=1"}, "f=1 l->/"},
	{"parent behind dots and slashes", []string{"r/ l->.//./r/.", "l/f=1"}, "l->.//./r/. r/ r/f=1"},
	{"parent behind a dangling symlink", []string{"l->no/where", "l/f=1"}, "l->no/where no/ no/where/ no/where/f=1"},
	{"parents that point at one another", []string{"a->b b->a", "a/f=1"}, "!more than 40 symlinks"},
	{"parent that points at itself", []string{"a->a/b", "a/f=1"}, "!more than 40 symlinks"},
	{"parent that is a file", []string{"a=1", "a/f=1"}, "!not a directory"},
	{"parent that is a FIFO", []string{"a|", "a/f=1"}, "!not a directory"},
	{"parent behind a symlink to a file", []string{"f=1 l->f", "l/f=1"}, "!not a directory"},
	{"last name is not followed", []string{"d/ l->d", "l=1"}, "d/ l=1"},
	{"directory over a symlink to one", []string{"r/ r/f=1 l->r", "l/"}, "l/ r/ r/f=1"},

	{"the same name twice", []string{"a=1 a=2"}, "a=2"},
	{"a directory twice", []string{"d/ d/f=1 d/"}, "d/ d/f=1"},
	{"the root", []string{"./ ./a=1 /b=2 .//c=3"}, "a=1 b=2 c=3"},
	{"the root as a file", []string{".=1"}, "!the root can be nothing but a directory"},
	{"the root as a symlink", []string{"/->a"}, "!the root can be nothing but a directory"},
	{"out of the tree", []string{"../a=1"}, "!escapes"},
	{"out of the tree in the middle", []string{"a/../../b=1"}, "!escapes"},
	{".. that stays inside", []string{"a/../b=1"}, "!escapes"},
	{"no layer", nil, ""},
	{"empty layers", []string{"", "a=1", "", ""}, "a=1"},
}

func TestSemantics(t *testing.T) {
	for _, c := range semantics {
		t.Run(c.about, func(t *testing.T) { checkSemantics(t, c.layers, c.want) })
	}
}

// checkSemantics applies layers; package verify must agree with what comes of
// them, also if that is a refusal.
func checkSemantics(t *testing.T, layers []string, want string) {
	t.Helper()
	var sources tars
	var all []packed
	for _, text := range layers {
		sources = append(sources, tarball(t, parse(text)...))
		l, err := pack(sources[len(sources)-1])
		if err != nil {
			checkRefusal(t, err, want)
			return
		}
		all = append(all, l)
	}
	m, tree, s, err := build(all...)
	if err != nil || strings.HasPrefix(want, "!") {
		checkRefusal(t, err, want)
		if _, err := verify.Tree(t.Context(), m, s.Size, sources); err == nil {
			t.Error("package verify takes the layers")
		}
		return
	}
	if got := list(m, tree); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if err := verified(m, s.Size, sources); err != nil {
		t.Errorf("package verify: %v", err)
	}
	fsck(t, m.file(t, s.Size))
}

func checkRefusal(t *testing.T, err error, want string) {
	t.Helper()
	if part, ok := strings.CutPrefix(want, "!"); !ok || err == nil || !errors.Is(err, ErrLayer) || !strings.Contains(err.Error(), part) {
		t.Errorf("error %v, want %q", err, want)
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
}

// Every kind of entry takes the place of every other, from a lower layer and
// from its own; a directory over a directory keeps what is in it.
func TestReplacement(t *testing.T) {
	kinds := []struct{ text, listed string }{
		{"x/ x/in=1", "x/ x/in=1"}, {"x=file", "x=file"}, {"x->a", "x->a"}, {"x|", "x|"}, {"x%", "x%"}, {"x=>a", "x=>a"},
	}
	for _, old := range kinds {
		for _, kind := range kinds {
			want := "a=1 " + kind.listed
			t.Run(fmt.Sprintf("%s over %s", kind.text, old.text), func(t *testing.T) {
				checkSemantics(t, []string{"a=1 " + old.text, kind.text}, want)
				checkSemantics(t, []string{"a=1 " + old.text + " " + kind.text}, want)
			})
		}
	}
	checkSemantics(t, []string{"x/ x/a=1 x/b=1", "x/ x/b=2"}, "x/ x/a=1 x/b=2")
}

// 40 symlinks may lie on the way, as for the kernel.
func TestSymlinkLimit(t *testing.T) {
	chain := func(n int) string {
		text := "d/"
		for i := range n {
			text += fmt.Sprintf(" l%02d->%s", i, map[bool]string{true: "d", false: fmt.Sprintf("l%02d", i-1)}[i == 0])
		}
		return text
	}
	for _, n := range []int{maxSymlinks, maxSymlinks + 1} {
		var all []packed
		for _, text := range []string{chain(n), fmt.Sprintf("l%02d/f=1", n-1)} {
			all = append(all, mustPack(t, tarball(t, parse(text)...)))
		}
		_, _, _, err := build(all...)
		if n <= maxSymlinks && err != nil || n > maxSymlinks && !errors.Is(err, ErrLayer) {
			t.Errorf("%d symlinks: %v", n, err)
		}
	}
}
