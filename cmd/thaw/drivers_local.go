//go:build !cloud

package main

import (
	"context"
	"embed"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"thaw/keys"
	"thaw/origin"
)

//go:embed all:parts
var localParts embed.FS

func embedded() embed.FS { return localParts }

func originDrivers() []origin.Option { return nil }

func keyDrivers() []keys.Option { return nil }

// handOver makes this process the build with all drivers, if the origin or the
// key needs one of those, or the command is only there, with the same arguments
// and environment. It returns if it is not needed, or with the reason why it
// cannot be had. Only in that build are the services' SDKs: they would take some
// 15 ms of every start.
func (g *Globals) handOver(ctx context.Context, command string, args []string) error {
	verb, _, _ := strings.Cut(command, " ")
	if !slices.Contains(fullVerbs, verb) && !slices.Contains(cloudOrigins, scheme(g.Origin)) && !slices.Contains(cloudKeys, scheme(g.Key)) {
		return nil
	}
	if err := g.checkAsking(verb); err != nil {
		return err
	}
	path, err := g.part(cloudPart)
	if err != nil {
		return err
	}
	if err := g.lastCall(ctx); err != nil {
		return err
	}
	err = syscall.Exec(path, append([]string{os.Args[0]}, args...), os.Environ())
	return fmt.Errorf("starting the build with all drivers: %w", &os.PathError{Op: "exec", Path: path, Err: err})
}
