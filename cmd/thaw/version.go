package main

import (
	"fmt"
	"runtime/debug"
)

// versionCmd prints which thaw this is. thaw --version does too.
type versionCmd struct{}

// Run prints one line.
func (*versionCmd) Run(g *Globals) error {
	info, _ := debug.ReadBuildInfo() // nil where there is none
	_, err := fmt.Fprintln(g.stdout, versionLine(info))
	return err
}

// versionLine is what go build has written into a program: its module's version,
// and the commit if the version does not have it.
func versionLine(info *debug.BuildInfo) string {
	if info == nil {
		return "thaw (unknown version)"
	}
	line := "thaw " + info.Main.Version
	if info.Main.Version == "" || info.Main.Version == "(devel)" {
		line = "thaw (devel)"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				line += " " + s.Value
			}
		}
	}
	return line + " " + info.GoVersion
}
