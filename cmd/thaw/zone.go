package main

// The verb zone is in the build with all drivers (handOver): what it needs would
// make every start longer.

// maxDev is how many nodes one machine is asked to run: beyond that they tell
// nothing more.
const maxDev = 32

// zoneCmd is the verb of the cache that workers share.
type zoneCmd struct {
	Serve  zoneServeCmd  `cmd:"" default:"withargs" help:"Run one node, or with --dev several. This is what thaw zone does without a word behind it."`
	Status zoneStatusCmd `cmd:"" help:"Show how the nodes of --zone are doing."`
	Drain  zoneDrainCmd  `cmd:"" help:"Have a node take in nothing more, before it is stopped for long."`
}

// Help teaches by example.
func (zoneCmd) Help() string {
	return `A zone is the cache that workers share: each node keeps pieces of chunks in memory and on
flash, and any one of five may be missing. What nodes hold is sealed, and may be lost at any time.

  thaw zone --dev 5                             five nodes on this machine; prints what --zone wants
  thaw zone status --zone file:/etc/thaw/zone

  thaw zone --listen 10.0.0.5:7070 --memory 16GiB --flash /var/lib/thaw/flash --flash-size 200GiB \
      --tls-cert node.pem --tls-key node.key --tls-client-ca workers.pem

A node listens on loopback only unless it asks for certificates: nothing else keeps strangers from
filling and draining it.`
}

// zoneServeCmd runs nodes.
type zoneServeCmd struct {
	Listen    string   `help:"Address to listen on (127.0.0.1:7070); port 0 picks one. The first line of output is the address." placeholder:"HOST:PORT"`
	Dev       int      `help:"Run so many nodes as children of this process, on ports of their own and in folders below STATE/zone. The first line of output is the value for --zone." placeholder:"N"`
	Memory    byteSize `help:"Bytes of stripes kept in memory, a node (1GiB; with --dev 128MiB)."`
	Flash     string   `help:"Folder of the flash store (none; with --dev below STATE/zone)." placeholder:"DIR" type:"path"`
	FlashSize byteSize `help:"Bytes that the flash store takes, at once (50GiB; with --dev 1GiB)."`
	serverTLS
}

// serverTLS is how this program is spoken to.
type serverTLS struct {
	TLSCert     string `name:"tls-cert" help:"Certificate of this address, PEM." placeholder:"FILE" type:"path"`
	TLSKey      string `name:"tls-key" help:"Its key, PEM." placeholder:"FILE" type:"path"`
	TLSClientCA string `name:"tls-client-ca" help:"Serve only clients with a certificate of one of these authorities, PEM." placeholder:"FILE" type:"path"`
}

// zoneStatusCmd asks all nodes how they are.
type zoneStatusCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

// Help teaches by example.
func (zoneStatusCmd) Help() string {
	return `HITS is the part of GETs that found their stripe, MEMORY and FLASH what is used of what may be.

  thaw zone status --zone 127.0.0.1:7070
  thaw zone status --zone file:/etc/thaw/zone --zone-ca ca.pem --zone-cert worker.pem --zone-key worker.key
  thaw zone status --json | jq 'select(.state == "down").node'

Exit status 1: a node is down.`
}

// zoneDrainCmd makes a node refuse fills.
type zoneDrainCmd struct {
	Node string `arg:"" help:"The node's HOST:PORT."`
}

// Help teaches by example.
func (zoneDrainCmd) Help() string {
	return `The node still gives what it has, and takes in nothing new until it is started again: fills go
to the other nodes of their chunks, so that it is missed less when it stops.

  thaw zone drain 10.0.0.5:7070`
}
