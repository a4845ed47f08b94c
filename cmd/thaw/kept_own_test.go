//go:build cloud

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"thaw/builder"
	"thaw/cluster"
	"thaw/functions"
)

// What one platform knows nothing of, another's functions may need: beside each
// other, or after records were lost, nothing is given as to be removed.
func TestKeptOwn(t *testing.T) {
	k, _ := newKept(t)
	ctx := t.Context()
	records := func() *cluster.Records {
		s, err := cluster.Serve(ctx, cluster.ServerOptions{Dir: t.TempDir(), Token: strings.Repeat("0", 64)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		c, err := cluster.Dial(ctx, s.URL(), strings.Repeat("0", 64))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		r, err := c.Records(ctx, buildRecords)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first, second := own{k, records()}, own{k, records()}
	data := []byte("a package")
	sum := sha256.Sum256(data)
	if _, err := (packages{k.g}).Put(ctx, functions.ID{Account: usualAccount, Name: "f"}, hex.EncodeToString(sum[:]), section(data)); err != nil {
		t.Fatal(err)
	}
	each := func(k own) (n int, err error) {
		err = k.Each(ctx, func(builder.Thing) error { n++; return nil })
		return n, err
	}
	for range 2 {
		if n, err := each(first); n != 1 || err != nil {
			t.Fatalf("alone: %d things, %v", n, err)
		}
	}
	for _, k := range []own{second, first, second} {
		if n, err := each(k); n != 0 || err == nil {
			t.Errorf("beside another: %d things, %v", n, err)
		}
	}
}
