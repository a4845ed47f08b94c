package oci

import (
	"strings"
	"testing"
)

func TestReferenceThatMayHoldAPasswordIsNotRepeated(t *testing.T) {
	for _, s := range []string{"docker://user:hunter2@host/image:v1", "user:hunter2@host:5000/image", "https://user:hunter2@host/image", "ftp://hunter2/x"} {
		if _, err := parseSource(s); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"debian:12", "docker://host:5000/a/b@sha256:0", "debian@sha256:0"} {
		if _, err := parseSource(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}
