package host

import "testing"

// TestFetcherKey: fetchers of one origin and folder are one, unless they use
// different zones.
func TestFetcherKey(t *testing.T) {
	one := Fetcher{Origin: "file:///o", Cache: "/c", Args: []string{"thaw"}}
	same, zone, other := one, one, one
	same.Args = []string{"thaw", "--more"}
	zone.Zone, other.Zone = "127.0.0.1:1", "127.0.0.1:2"
	if one.key() != same.key() {
		t.Error("the same origin, folder and zone have two fetchers")
	}
	if one.key() == zone.key() || zone.key() == other.key() {
		t.Error("two zones share a fetcher")
	}
}
