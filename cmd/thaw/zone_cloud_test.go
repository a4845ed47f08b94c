//go:build cloud

package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Nodes are asked themselves: not whom they name instead, and by no proxy.
func TestNodesAreAskedThemselves(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another was asked") }))
	defer other.Close()
	node := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer node.Close()
	c, err := (&Globals{}).nodeClient()
	if err != nil {
		t.Fatal(err)
	}
	if transport := c.Transport.(*http.Transport); transport.Proxy != nil {
		t.Error("it has a proxy")
	}
	_, err = c.ask(t.Context(), http.MethodPost, strings.TrimPrefix(node.URL, "http://"), "/drain")
	if err == nil || !strings.Contains(err.Error(), "307") {
		t.Error(err)
	}
}

// The heap's bound grows with what is known of stripes.
func TestHeapLimit(t *testing.T) {
	for _, c := range []struct {
		memory, flash int64
		onFlash       bool
		want          int64
	}{
		{128 << 20, 50 << 30, false, heap + 512<<10},
		{1 << 30, 50 << 30, true, heap + 204<<20},
	} {
		if got := heapLimit(c.memory, c.flash, c.onFlash); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
