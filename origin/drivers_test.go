package origin_test

import (
	"testing"

	"thaw/origin"
	"thaw/origin/origintest"
)

// TestDrivers tries the drivers that need nothing; those of package cloud are
// tried there.
func TestDrivers(t *testing.T) {
	for name, url := range map[string]func(t *testing.T) string{
		"folder":       func(t *testing.T) string { return "file://" + t.TempDir() },
		"folder named": func(t *testing.T) string { return "+file://" + t.TempDir() },
		"folder tmpfs": func(t *testing.T) string { return "file://" + origin.SharedMemory(t) },
		"folder new":   func(t *testing.T) string { return "file://" + t.TempDir() + "/not/yet there" },
		"mem":          func(*testing.T) string { return "mem://" },
	} {
		t.Run(name, func(t *testing.T) {
			origintest.Driver(t, func(t *testing.T) origin.Bucket { return origin.BucketOf(t, url(t)) })
		})
	}
}
