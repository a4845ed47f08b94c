package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// What the roles of one platform share is in STATE/fleet, root's alone:
//
//	token         of the fleet, 64 hex digits: what roles show each other
//	platform.json what runs: fleetRecord; gone when thaw up has ended
//	credentials   the key pair that thaw up has made for this machine's user: keyPair
//	lock          held by thaw up
//	authority.pem, ca.pem, machine.pem
//	              certificates, if there are other machines: package fleet
//	joined.json   which fleet this machine has joined: membership
//	cluster/      the records' server's folder
//	registry/     the registry's blobs and manifests
const fleetDir = "fleet"

// Files of fleetDir: platformFile is there while thaw up runs, joinedFile from
// the join to the leave.
const platformFile, joinedFile = "platform.json", "joined.json"

func (g *Globals) fleetPath(names ...string) string {
	return filepath.Join(append([]string{g.State, fleetDir}, names...)...)
}

// errNoPlatform says what is missing for most verbs.
var errNoPlatform = errors.New("no platform runs with this --state")

// notStarted is errNoPlatform of a machine that has joined no fleet, and what to do.
func notStarted() error {
	return fmt.Errorf("%w: start it with thaw up, or for a role of another machine's platform join it with thaw fleet join", errNoPlatform)
}

// askingVerbs are of no use unless a platform runs that is found by the state.
var askingVerbs = []string{"env", "deploy", "invoke", "functions", "delete", "logs", "coldstarts", "events", "keys", "registry", "bench", "base"}

// checkAsking fails if a verb needs a platform and the state has never had one, or
// has none now: so a state that was mistyped is not filled with parts first.
func (g *Globals) checkAsking(verb string) error {
	if !slices.Contains(askingVerbs, verb) {
		return nil
	}
	for _, name := range []string{platformFile, joinedFile} {
		if _, err := os.Lstat(g.fleetPath(name)); !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return notStarted()
}
