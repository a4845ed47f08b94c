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
	if _, err := o.Trace(ctx, "r1", "acme", image); !errors.Is(err, ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	if err := o.RemoveTraces(ctx, "r1", "acme", image); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
	for n := range keepRecords + 3 {
		if err := o.PutTrace(ctx, "r1", "acme", image, fmt.Appendf(nil, "trace %d", n)); err != nil {
			t.Fatal(err)
		}
		if got, err := o.Trace(ctx, "r1", "acme", image); err != nil || string(got) != fmt.Sprintf("trace %d", n) {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := o.PutTrace(ctx, "r1", "other", image, []byte("others'")); err != nil {
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
	if err := o.RemoveTraces(ctx, "r1", "acme", image); err != nil {
		t.Error(err)
	}
	if _, err := o.Trace(ctx, "r1", "acme", image); !errors.Is(err, ErrNotFound) {
		t.Errorf("after its removal: %v", err)
	}
	if got, err := o.Trace(ctx, "r1", "other", image); err != nil || string(got) != "others'" {
		t.Errorf("another tenant's: %q, %v", got, err)
	}
}

func TestTracesOfNobody(t *testing.T) {
	o := open(t, "mem://")
	for _, bad := range [][3]string{{"../r1", "acme", "x"}, {"r1", "", "x"}, {"r1", "acme", "../x"}, {"r1", "acme", ""}, {"r1", "a/b", "x"}} {
		_, err := o.Trace(t.Context(), bad[0], bad[1], bad[2])
		perr := o.PutTrace(t.Context(), bad[0], bad[1], bad[2], nil)
		if rerr := o.RemoveTraces(t.Context(), bad[0], bad[1], bad[2]); err == nil || perr == nil || rerr == nil {
			t.Errorf("%q: %v, %v, %v", bad, err, perr, rerr)
		}
	}
}
