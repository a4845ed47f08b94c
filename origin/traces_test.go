package origin

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestTraces(t *testing.T) {
	o := open(t, "file://"+t.TempDir())
	ctx, image := t.Context(), strings.Repeat("ab", 32)
	traces := o.Traces("r1", "acme")
	if _, err := traces.Get(ctx, image); !errors.Is(err, ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	if err := traces.Remove(ctx, image); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
	for n := range keepRecords + 3 {
		if err := traces.Put(ctx, image, fmt.Appendf(nil, "trace %d", n)); err != nil {
			t.Fatal(err)
		}
		if got, err := traces.Get(ctx, image); err != nil || string(got) != fmt.Sprintf("trace %d", n) {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := o.Traces("r1", "other").Put(ctx, image, []byte("others'")); err != nil {
		t.Fatal(err)
	}
	var kept []string
	for e, err := range o.bucket.List(ctx, "roots/r1/traces/acme/"+image+"/", true) {
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, e.Key)
	}
	if want := recordKey("roots/r1/traces/acme/"+image, keepRecords+3); len(kept) != keepRecords || !slices.Contains(kept, want) {
		t.Errorf("kept %v, want %s and those before", kept, want)
	}
	if err := traces.Remove(ctx, image); err != nil {
		t.Error(err)
	}
	if _, err := traces.Get(ctx, image); !errors.Is(err, ErrNotFound) {
		t.Errorf("after its removal: %v", err)
	}
	if got, err := o.Traces("r1", "other").Get(ctx, image); err != nil || string(got) != "others'" {
		t.Errorf("another tenant's: %q, %v", got, err)
	}
}

func TestTracesOfNobody(t *testing.T) {
	o := open(t, "mem://")
	for _, bad := range [][3]string{{"../r1", "acme", "x"}, {"r1", "", "x"}, {"r1", "acme", "../x"}, {"r1", "acme", ""}, {"r1", "a/b", "x"}} {
		traces := o.Traces(bad[0], bad[1])
		_, err := traces.Get(t.Context(), bad[2])
		if perr, rerr := traces.Put(t.Context(), bad[2], nil), traces.Remove(t.Context(), bad[2]); err == nil || perr == nil || rerr == nil {
			t.Errorf("%q: %v, %v, %v", bad, err, perr, rerr)
		}
	}
}
