package builder

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"thaw/functions"
)

// What a build will ask a registry for by digest is needed, from the function's
// creation until the device is there; so are the images of runtimes. A damaged
// function leaves it open.
func TestNeeded(t *testing.T) {
	f := newFleet(t)
	ctx := t.Context()
	digest := func(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }
	runtimes := Runtimes{"python": "docker://localhost:9005/base@" + digest("d"), "node": "oci:/srv/node"}
	expect := func(what string, want ...string) {
		t.Helper()
		all := map[string]bool{digest("d"): true}
		for _, w := range want {
			all[w] = true
		}
		if got, err := Needed(ctx, f.store, runtimes); err != nil || !maps.Equal(got, all) {
			t.Errorf("%s: %v, %v, want %v", what, got, err, all)
		}
	}
	expect("no function")
	create := func(name, uri string) functions.ID {
		id := functions.ID{Account: account, Name: name}
		v := functions.Version{Package: functions.Package{ImageURI: uri}}
		if err := f.store.Create(ctx, functions.NewFunction(id, v, time.Now()), false); err != nil {
			t.Fatal(err)
		}
		return id
	}
	given, tagged := create("given", "localhost:9005/f@"+digest("a")), create("tagged", "localhost:9005/f:latest")
	expect("created", digest("a"))
	build := func(id functions.ID) string {
		fn, err := f.store.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return fn.Latest.Build
	}
	if err := f.store.Resolve(ctx, tagged, build(tagged), "localhost:9005/f@"+digest("b")); err != nil {
		t.Fatal(err)
	}
	expect("resolved", digest("a"), digest("b"))
	if err := f.store.Settle(ctx, tagged, build(tagged), functions.Result{Code: InternalError, Reason: "No."}); err != nil {
		t.Fatal(err)
	}
	expect("failed: a change of its configuration builds it again", digest("a"), digest("b"))
	if err := f.store.Settle(ctx, given, build(given), functions.Result{Image: "i", Root: "r"}); err != nil {
		t.Fatal(err)
	}
	expect("built", digest("b"))
	if err := f.store.Delete(ctx, tagged); err != nil {
		t.Fatal(err)
	}
	expect("deleted")

	if _, err := f.records().Create(ctx, "f/"+account+"/odd", []byte("{")); err != nil {
		t.Fatal(err)
	}
	if got, err := Needed(ctx, f.store, runtimes); err == nil {
		t.Errorf("with a damaged function: %v", got)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if got, err := Needed(ended, f.store, runtimes); err == nil {
		t.Errorf("without a server: %v", got)
	}
}
