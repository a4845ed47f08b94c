//go:build cloud

package main

import (
	"context"
	"embed"

	"thaw/keys"
	"thaw/keys/kms"
	"thaw/origin"
	"thaw/origin/cloud"
)

//go:embed parts
var cloudParts embed.FS // without this program itself

func embedded() embed.FS { return cloudParts }

// originDrivers opens the origins that are no folder.
func originDrivers() []origin.Option {
	var all []origin.Option
	for _, scheme := range cloudOrigins {
		all = append(all, origin.WithDriver(scheme, cloud.Open))
	}
	return all
}

// keyDrivers opens the keys that are no file.
func keyDrivers() []keys.Option {
	var all []keys.Option
	for _, scheme := range cloudKeys {
		all = append(all, keys.WithDriver(scheme, kms.Open))
	}
	return all
}

// handOver has nobody to hand over to: this build has all drivers.
func (g *Globals) handOver(context.Context, string, []string) error { return nil }
