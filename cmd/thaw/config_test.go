package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// parse reads a command line as run does.
func parse(t *testing.T, args ...string) (*Globals, *kong.Context, error) {
	t.Helper()
	root, g := commandLine(args)
	parser, err := kong.New(root, kong.Name("thaw"), kong.Writers(&bytes.Buffer{}, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	k, err := parser.Parse(args)
	return g, k, err
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "thaw.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The command line goes before the environment, and that before the file, which
// may be for several verbs.
func TestConfig(t *testing.T) {
	t.Setenv("THAW_TENANT", "theirs")
	path := configFile(t, `
		origin = "s3://images"
		tenant = "of the file"
		origin-requests = 7
		origin-deadline = "5s"
		cache-size = "2GiB"

		[worker]
		listen = "10.0.0.6:9012"
		memory = 1048576
		allow = ["10.1.0.0/16", "10.2.0.0/16"]
		id = "of the file"

		[cluster]
		listen = "10.0.0.5:9010"
		peers = ["10.0.0.6:9011"]
		replicas = 5

		[cluster.backup]
		cluster = "tls://10.0.0.5:9010"

		[env]
		json = true
	`)
	for name, before := range map[string]bool{"before the verb": true, "after it": false} {
		args := []string{"worker", "--config", path, "--id=mine"}
		if before {
			args = []string{"--config", path, "worker", "--id=mine"}
		}
		g, k, err := parse(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		flags := map[string]string{}
		for _, f := range k.Flags() {
			flags[f.Name] = fmt.Sprint(k.FlagValue(f))
		}
		if g.Origin != "s3://images" || g.Tenant != "theirs" || g.OriginRequests != 7 || g.OriginDeadline.String() != "5s" || g.CacheSize != 2<<30 {
			t.Errorf("%s: flags of all verbs: %+v", name, g)
		}
		for flag, want := range map[string]string{"listen": "10.0.0.6:9012", "memory": "1MiB", "allow": "[10.1.0.0/16 10.2.0.0/16]", "id": "mine", "cluster": ""} {
			if flags[flag] != want {
				t.Errorf("%s: --%s is %q, want %q", name, flag, flags[flag], want)
			}
		}
	}
	for _, verb := range [][]string{{"cluster"}, {"cluster", "serve"}} {
		_, k, err := parse(t, append(verb, "--config", path)...)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range k.Flags() {
			if f.Name == "replicas" && fmt.Sprint(k.FlagValue(f)) != "5" {
				t.Errorf("%q: replicas %v", verb, k.FlagValue(f))
			}
		}
	}
}

// What is no flag is refused by its name, in whichever table it stands.
func TestConfigRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"orign = 'x'":                              "orign: there is no such flag of thaw",
		"[worker]\nmemroy = '1GiB'":                "worker.memroy: there is no such flag of thaw worker",
		"[cluster.backup]\nlisten = 'x'":           "cluster.backup.listen: there is no such flag",
		"[nobody]\nx = 1":                          "nobody: there is no such flag",
		"[origin]\nx = 1":                          "origin: want a string",
		"origin = 1979-05-27":                      "origin: want a string",
		"config = 'other'":                         "config: there is no such flag",
		"help = true":                              "help: there is no such flag",
		"[fetcher]\nx = 1":                         "fetcher: there is no such flag",
		"[worker]\nallow = [['x']]":                "worker.allow: want a list",
		"[manager]\nidle = 'soon'":                 "soon",
		"origin-requests = 'many'":                 "many",
		"a = ":                                     "thaw.toml",
		"x = '" + strings.Repeat("x", 1<<20) + "'": "more than 1048576 bytes",
	} {
		_, _, err := parse(t, "manager", "--config", configFile(t, text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
	if _, _, err := parse(t, "manager", "--config", "/nowhere"); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a file that is not there: %v", err)
	}
}
