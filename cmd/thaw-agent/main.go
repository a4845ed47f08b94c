// Thaw-agent is the process that serves the device of one mounted image; see
// package agent. Only thaw starts it.
package main

import (
	"fmt"
	"os"

	"thaw/agent"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "thaw-agent: this program is started by thaw")
		os.Exit(2)
	}
	os.Exit(agent.Main(os.Args[1:]))
}
