package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"thaw/catalog"
	"thaw/internal/testoci"
	"thaw/keys"
)

// hooked is a key that lets others act while a name is read.
type hooked struct {
	keys.Keeper
	during func()
}

func (h hooked) Unwrap(ctx context.Context, wrapped []byte) ([]byte, error) {
	h.during()
	return h.Keeper.Unwrap(ctx, wrapped)
}

// An image that gets a name after rm has looked for names, and before it has
// removed the manifest, keeps it.
func TestRmOfAnImageThatIsNamedMeanwhile(t *testing.T) {
	state := t.TempDir() + "/state"
	convert := func(seed uint64, name string) {
		src := testoci.Layout(t, t.TempDir()+"/"+name, nil, testoci.Tar(t, testoci.File("f", testoci.Noise(seed, 1000))))
		must(t, "--state", state, "convert", src, "--name", name)
	}
	convert(1, "app")
	convert(2, "other") // whose name is read while rm looks for the image's
	g := &Globals{State: state, Tenant: "default", OriginDeadline: patience, OriginRequests: 1, stdout: io.Discard, stderr: io.Discard}
	if err := g.complete(); err != nil {
		t.Fatal(err)
	}
	s, err := g.open(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	plain := s.names
	ref, err := plain.Get(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Remove(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	once := true
	s.names = catalog.New(s.Origin, "default", hooked{s.key, func() {
		if once {
			once = false
			if _, err := plain.Set(context.Background(), "late", ref.Image, ref.Root); err != nil {
				t.Error(err)
			}
		}
	}})
	if gone, err := g.removeImage(t.Context(), s, ref); gone || err != nil {
		t.Fatalf("%v, %v", gone, err)
	}
	must(t, "--state", state, "verify", "late")
	if text := must(t, "--state", state, "rm", "late"); !strings.HasPrefix(text, "removed "+ref.Image) {
		t.Fatal(text)
	}
}

func TestRmSaysWhatItDid(t *testing.T) {
	for _, c := range []struct {
		out  removed
		json bool
		want string
	}{
		{removed{"app", "1234"}, false, "removed 1234\n"},
		{removed{"app", ""}, false, "removed the name app; the image stays\n"},
		{removed{"", "1234"}, true, `{"image":"1234"}` + "\n"},
	} {
		var b bytes.Buffer
		cmd := rmCmd{Image: "app", JSON: c.json}
		if err := cmd.print(&Globals{stdout: &b}, c.out); err != nil || b.String() != c.want {
			t.Errorf("%+v: %q, %v", c.out, b.String(), err)
		}
	}
	for _, json := range []bool{false, true} {
		if err := (&rmCmd{Image: "1234", JSON: json}).print(&Globals{stdout: io.Discard}, removed{}); err == nil {
			t.Error("nothing was removed, and that was no error")
		}
	}
}
