package main

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// The verbs of the function platform are in the build with all drivers
// (handOver): what they need would make every start longer.

// upCmd runs a whole platform on one machine.
type upCmd struct {
	Listen     string   `help:"Address of the Lambda API. Beyond loopback it speaks TLS, with --tls-cert or a certificate of the fleet's own authority (127.0.0.1:9000)." default:"127.0.0.1:9000" env:"THAW_LISTEN" placeholder:"HOST:PORT"`
	Fleet      string   `help:"Address of this machine at which the roles of other machines find its own, over mutual TLS; they take this port and the next two (none: all roles on loopback)." placeholder:"HOST:PORT"`
	Registry   string   `help:"Address of the registry inside, for docker push (127.0.0.1:9005)." default:"127.0.0.1:9005" env:"THAW_REGISTRY" placeholder:"HOST:PORT"`
	Budget     byteSize `help:"Memory that all of it may take (three quarters of what this machine has)."`
	Disk       byteSize `help:"Bytes of disk that functions' /tmp and logs may take together; beyond that no instance starts (half of what is free)."`
	Nodes      int      `help:"Nodes of the zone cache on this machine; 0 for none (5)." default:"5" placeholder:"N"`
	ZoneMemory byteSize `help:"Memory that these nodes take together (5 % of the budget, 16 MiB each at least)."`
	ZoneDisk   byteSize `help:"Bytes of disk that these nodes take together, at once (5 % of what is free, 20 MiB each at least)."`
	Runtime    string   `help:"OCI runtime of instances: runc, crun, runsc, or a path (the best that this machine can run)." placeholder:"R"`
	Runtimes   string   `help:"TOML file that maps names of runtimes to base images, for zip packages, [runtimes] and lines NAME = IMAGE in quotes (STATE/runtimes.toml)." type:"existingfile" placeholder:"FILE"`
	Allow      []string `help:"Private addresses that functions may reach; they reach none by themselves." placeholder:"CIDR"`
	Metrics    string   `help:"Address where Prometheus gets the numbers of all roles, such as 127.0.0.1:9101 (none)." env:"THAW_METRICS" placeholder:"HOST:PORT"`
	CABundle   string   `name:"ca-bundle" help:"File of certificates, in PEM, that functions trust besides those of their images." type:"existingfile" placeholder:"FILE"`
	maxImageFlag
	accountFlag
	s3Flags
	identityFlags
	serverTLS
}

// accountFlag is for who works with this machine's files.
type accountFlag struct {
	Account string `help:"Account, twelve digits, of whoever uses the platform from this machine: that of thaw env's keys and of thaw's verbs (000000000000)." default:"000000000000" env:"THAW_ACCOUNT" placeholder:"A"`
}

// s3Flags say where packages may come from.
type s3Flags struct {
	S3 string `name:"s3" help:"S3 service that functions' packages may come from, s3://[BUCKET]?endpoint=URL&region=R: with a bucket, from that one alone. Every account may name what the credentials in the environment can read." env:"THAW_S3" placeholder:"URL"`
}

// identityFlags are what functions and clients see of the platform.
type identityFlags struct {
	Region    string `help:"Region in ARNs and signatures (us-east-1)." default:"us-east-1" env:"THAW_REGION" placeholder:"R"`
	URLDomain string `name:"url-domain" help:"Domain of function URLs, ID.lambda-url.REGION.DOMAIN: its wildcard name has to lead to the Lambda API, and the certificate to cover it (the host name under which clients reach the API; localhost if that is an address)." env:"THAW_URL_DOMAIN" placeholder:"DOMAIN"`
	Network   string `help:"What functions reach besides themselves: egress, the outside and the Lambda API; or none (egress)." enum:"egress,none" default:"egress" env:"THAW_NETWORK" placeholder:"WHAT"`
}

// label is that of a host, as a regular expression.
const label = `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`

// Validate refuses a region that is no host's label, and a domain that is none:
// function URLs have both.
func (f identityFlags) Validate() error {
	if !regexp.MustCompile(`^` + label + `$`).MatchString(f.Region) {
		return fmt.Errorf("--region %s: want lower-case letters, digits and hyphens, at most 63, such as us-east-1", f.Region)
	}
	if !regexp.MustCompile(`^(` + label + `(\.` + label + `)*)?$`).MatchString(f.URLDomain) {
		return fmt.Errorf("--url-domain %s: want a domain in lower case, without a port, such as example.com", f.URLDomain)
	}
	return nil
}

// maxImageFlag is for who runs or is a builder.
type maxImageFlag struct {
	MaxImage byteSize `help:"Most bytes of a function's image, all layers uncompressed." default:"10GiB"`
}

// Validate refuses a limit that no image is within.
func (f maxImageFlag) Validate() error {
	if f.MaxImage == 0 {
		return errors.New("--max-image 0: no image is as small: want a size such as 10GiB")
	}
	return nil
}

// Validate refuses what no role could work with.
func (c *upCmd) Validate() error {
	return cmp.Or(c.identityFlags.Validate(), c.maxImageFlag.Validate())
}

// Help teaches by example.
func (upCmd) Help() string {
	return `Brings up the Lambda API, a manager, a worker, a builder, the records' server and a zone cache,
each a process of its own, and starts again what ends. Ctrl-C ends all and leaves nothing behind but
the state: functions, keys and queued events are there again the next time.

  thaw up
  thaw up --s3 's3://?endpoint=http://127.0.0.1:7070'      packages may come from there, by S3Bucket and S3Key
  eval "$(thaw env)"                      in another shell: AWS CLI and SDKs speak to it
  thaw deploy hello oci:./layout:v1
  aws lambda invoke --function-name hello --payload '{}' /dev/stdout`
}

// envCmd prints what sets a shell up.
type envCmd struct {
	JSON bool `name:"json" help:"One JSON object."`
}

// Help teaches by example.
func (envCmd) Help() string {
	return `Finds the platform that runs with this --state.

  eval "$(thaw env)"
  aws lambda list-functions`
}

// fleetFlags say how a role finds the others.
type fleetFlags struct {
	Cluster string `help:"URL of the records' server (what runs with this --state)." env:"THAW_CLUSTER" placeholder:"URL"`
	Listen  string `help:"Address to listen on; port 0 picks one. Beyond loopback it takes this machine's certificate (thaw fleet). The first line of output is the address. (127.0.0.1:0; of managers and workers of a fleet, the address that is towards its records' server.)" placeholder:"HOST:PORT"`
}

type clusterCmd struct {
	Serve   clusterServeCmd   `cmd:"" default:"withargs" help:"Run the server of records, leases and queues. This is what thaw cluster does without a word behind it."`
	Backup  clusterBackupCmd  `cmd:"" help:"Write all records and queued events to a file."`
	Restore clusterRestoreCmd `cmd:"" help:"Make a server's folder of a backup."`
}

type clusterServeCmd struct {
	Listen   string   `help:"Address to listen on; port 0 picks one. The first line of output is the URL." default:"127.0.0.1:0" placeholder:"HOST:PORT"`
	Name     string   `help:"Name among several servers." placeholder:"NAME"`
	Routes   string   `help:"Address to listen on for other servers (none: this is the only one)." placeholder:"HOST:PORT"`
	Peers    []string `help:"Addresses of other servers, as their --routes have them." placeholder:"HOST:PORT"`
	Replicas int      `help:"On how many servers each record is kept: 1, 3 or 5, the same for all (3)." placeholder:"N"`
}

type clusterBackupCmd struct {
	File    string `arg:"" help:"File to write, which must not exist; - for standard output."`
	Cluster string `help:"URL of the records' server (what runs with this --state)." env:"THAW_CLUSTER" placeholder:"URL"`
}

type clusterRestoreCmd struct {
	File string `arg:"" help:"File of a backup; - for standard input."`
}

// Help says what is written where.
func (clusterRestoreCmd) Help() string {
	return `Writes all functions, access keys and queued events of the backup to STATE/fleet/cluster. That must not
be there, or be empty: give another --state, or move the folder out of the way while no platform
runs. The origin and STATE/keys, which are not in a backup, have to be those of then. Then: thaw up.

  thaw --state /new cluster restore monday.thaw`
}

// Help teaches by example.
func (clusterCmd) Help() string {
	return `Functions, access keys and queued events are here; images are in the origin, and the tenants' keys
that seal images, functions' variables and access keys in STATE/keys, or where --key says: keep those
too. What no function needs any more leaves the origin after a quarter of an hour: a function that was
given other code since the backup has to be deployed again once it is restored.

  thaw cluster --name a --listen 10.0.0.5:9010 --routes 10.0.0.5:9011 --peers 10.0.0.6:9011,10.0.0.7:9011
  thaw cluster backup monday.thaw              while all goes on
  thaw --state /new cluster restore monday.thaw`
}

type builderCmd struct {
	fleetFlags
	maxImageFlag
	Runtimes string `help:"TOML file that maps names of managed runtimes to base images." type:"path" placeholder:"FILE"`
	accountFlag
}

type frontendCmd struct {
	fleetFlags
	Endpoint string `help:"URL under which clients reach the API (http://LISTEN, https:// with TLS)." placeholder:"URL"`
	Runtimes string `help:"TOML file that maps names of managed runtimes to base images." type:"path" placeholder:"FILE"`
	s3Flags
	identityFlags
	serverTLS
}

type managerCmd struct {
	fleetFlags
	Idle time.Duration `help:"How long an idle instance is kept." default:"10m"`
}

type workerCmd struct {
	fleetFlags
	ID       string   `help:"Name in the fleet, the same after a restart (the host's name; of a machine that has joined, with some letters behind it)." placeholder:"NAME"`
	Memory   byteSize `help:"Bytes that instances may take (three quarters of the machine's)."`
	Disk     byteSize `help:"Bytes of disk that functions' /tmp and logs may take together; beyond that no instance starts (half of what is free)."`
	Runtime  string   `help:"OCI runtime: runc, crun, runsc, or a path." placeholder:"R"`
	API      string   `name:"api" help:"Address of the Lambda API, for functions that call it; beyond loopback it speaks TLS (what the invitation says)." placeholder:"HOST:PORT"`
	Range    string   `help:"Addresses that functions get, a /12 to /28 (some /20 of 100.64.0.0/10 that is free)." placeholder:"CIDR"`
	Allow    []string `help:"Private addresses that functions may reach." placeholder:"CIDR"`
	CABundle string   `name:"ca-bundle" help:"File of certificates, in PEM, that functions trust besides those of their images." type:"existingfile" placeholder:"FILE"`
	PinSize  byteSize `help:"Most bytes of base images (thaw base) that stay in the cache; half of the cache at most." default:"2GiB"`
}

// fleetCmd is about machines that work together.
type fleetCmd struct {
	List   fleetListCmd   `cmd:"" default:"withargs" help:"List workers, and what they have to do."`
	Invite fleetInviteCmd `cmd:"" help:"Write what another machine joins with to a file. It is a secret."`
	Join   fleetJoinCmd   `cmd:"" help:"Make this machine one of a fleet, or renew its certificate."`
	Leave  fleetLeaveCmd  `cmd:"" help:"Undo join, once no role of the fleet runs here."`
}

// Help teaches by example.
func (fleetCmd) Help() string {
	return `Roles on several machines speak mutual TLS, with certificates of an authority that the first machine
makes. An invitation is for one machine; its certificate lasts a year, and joining again renews it
while all goes on. A worker needs the images' origin and the tenants' keys besides.

  thaw --origin s3://BUCKET --key awskms://KEY up --fleet 10.0.0.5:9010    the first machine
  thaw fleet invite second.json                              there; then copy the file
  thaw fleet join second.json && rm second.json              on the second
  thaw --origin s3://BUCKET --key awskms://KEY worker        there
  thaw fleet                                                 on the first: both workers
  thaw fleet leave                                           on the second, once its roles have ended`
}

type fleetListCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

type fleetInviteCmd struct {
	File    string   `arg:"" help:"File to write, which must not exist; - for standard output."`
	Host    []string `help:"Name or address by which clients reach the machine, for a frontend or zone node on it." placeholder:"HOST"`
	Cluster string   `help:"URL of the records' server (what runs with this --state)." env:"THAW_CLUSTER" placeholder:"URL"`
}

type fleetJoinCmd struct {
	File string `arg:"" help:"File of an invitation; - for standard input."`
}

type fleetLeaveCmd struct{}

// keysCmd manages access keys.
type keysCmd struct {
	Create keysCreateCmd `cmd:"" help:"Make a key pair. Its secret is shown once."`
	List   keysListCmd   `cmd:"" help:"List access keys."`
	Revoke keysRevokeCmd `cmd:"" help:"Make a key pair worthless."`
}

type keysCreateCmd struct {
	Account string `help:"Account, twelve digits, whose functions the key opens (that of thaw up)." placeholder:"A"`
	JSON    bool   `name:"json" help:"One JSON object."`
}

type keysListCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

type keysRevokeCmd struct {
	ID string `arg:"" help:"The access key's id."`
}

// deployCmd makes or updates a function.
type deployCmd struct {
	Name        string            `arg:"" help:"Function name."`
	Source      string            `arg:"" help:"Image: docker://REF, oci:DIR[:TAG], docker-daemon:NAME, or a reference; or a .zip file."`
	Memory      *int32            `help:"Memory in MB." placeholder:"MB"`
	Timeout     *int32            `help:"Timeout of an invoke, in seconds, 1 to 900." placeholder:"S"`
	Tmp         *int32            `help:"Size of /tmp in MB." placeholder:"MB"`
	Env         map[string]string `short:"e" help:"Variables, K=V." placeholder:"K=V" mapsep:"none"`
	Handler     string            `help:"Handler, of a zip package."`
	Runtime     string            `help:"Runtime, of a zip package: provided.al2023, or a name that the operator has mapped."`
	Command     []string          `help:"Replaces the image's Cmd." sep:"none" placeholder:"WORD"`
	Description string            `help:"What it is."`
	Publish     bool              `help:"Publish a version too."`
	NoWait      bool              `help:"Do not wait until it can be invoked."`
	JSON        bool              `name:"json" help:"The function's configuration as JSON."`
}

// maxTimeout is Lambda's own, in seconds.
const maxTimeout = 900

// Validate refuses a timeout that no function has.
func (c *deployCmd) Validate() error {
	if c.Timeout != nil && (*c.Timeout < 1 || *c.Timeout > maxTimeout) {
		return fmt.Errorf("--timeout %d: want 1 to %d seconds", *c.Timeout, maxTimeout)
	}
	return nil
}

// Help teaches by example.
func (deployCmd) Help() string {
	return `Makes the function, or gives it new code and configuration, and waits until it can be invoked.

  thaw deploy hello oci:./layout:v1 --memory 512 --timeout 10
  thaw deploy hello localhost:9005/hello:2        after docker push to the registry inside
  thaw deploy go code.zip --runtime provided.al2023 --handler x     its bootstrap is a static program: there is no shell`
}

// invokeCmd invokes a function.
type invokeCmd struct {
	Name    string `arg:"" help:"Function: NAME, NAME:VERSION, NAME:ALIAS or ARN."`
	Payload string `arg:"" optional:"" help:"JSON, @FILE, or - for standard input."`
	Log     bool   `help:"Show the end of the log on standard error."`
	Async   bool   `help:"Queue it, and wait for nothing."`
	JSON    bool   `name:"json" help:"The answer with status, version and log as one JSON object."`
}

// Help teaches by example.
func (invokeCmd) Help() string {
	return `Prints what the function answers. Exit status 1: the function failed, and its error was printed.

  thaw invoke hello '{"name":"x"}' --log
  thaw invoke hello @event.json
  thaw invoke hello --async`
}

type functionsCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

type deleteCmd struct {
	Name string `arg:"" help:"Function, or NAME:VERSION."`
}

// logsCmd shows what functions have written.
type logsCmd struct {
	Name   string        `arg:"" help:"Function."`
	Follow bool          `short:"f" help:"Go on with what is written from now on."`
	Since  time.Duration `help:"Only what is younger." default:"1h" placeholder:"TIME"`
	JSON   bool          `name:"json" help:"One JSON object a line."`
}

type coldstartsCmd struct {
	Name  string        `arg:"" help:"Function."`
	Since time.Duration `help:"Only what is younger." default:"24h" placeholder:"TIME"`
	JSON  bool          `name:"json" help:"One JSON object."`
}

type eventsCmd struct {
	List   eventsListCmd   `cmd:"" default:"withargs" help:"List dead letters: events that were given up."`
	Replay eventsReplayCmd `cmd:"" help:"Queue a dead letter again."`
	Remove eventsRemoveCmd `cmd:"" help:"Forget a dead letter."`
}

type eventsListCmd struct {
	Name string `arg:"" optional:"" help:"Function."`
	JSON bool   `name:"json" help:"One JSON object a line."`
}

type eventsReplayCmd struct {
	ID string `arg:"" help:"The event's request id."`
}

type eventsRemoveCmd struct {
	ID string `arg:"" help:"The event's request id."`
}

// baseCmd manages base images.
type baseCmd struct {
	Add  baseAddCmd  `cmd:"" help:"Convert an image, put it into the zone, and keep it in the cache of every worker."`
	List baseListCmd `cmd:"" default:"withargs" help:"List base images, and what workers have of them."`
	Rm   baseRmCmd   `cmd:"" help:"Keep a base image no longer."`
}

type baseAddCmd struct {
	Source string `arg:"" help:"docker://REF, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], or REF alone."`
	Name   string `help:"Name of the image (by default the source's)." placeholder:"N"`
	sourceFlags
	NoWait bool `help:"Do not wait until the workers have it."`
	JSON   bool `name:"json" help:"One JSON object."`
}

// Help teaches by example.
func (baseAddCmd) Help() string {
	return `Chunks that functions share with a base image are then on every worker before they are deployed.
Workers that join later fetch it too, and nodes of the zone are given it. What of it does not fit into a worker's --pin-size is cached
as any other chunk.

  thaw base add debian:12
  thaw base add oci:./layout:v1 --name ours`
}

type baseListCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

type baseRmCmd struct {
	Name string `arg:"" help:"Name that base list shows."`
}

// benchCmd measures the platform.
type benchCmd struct {
	Coldstart benchColdstartCmd `cmd:"" help:"Start many instances at once from nothing, and compare images, memory and packages."`
}

type benchColdstartCmd struct {
	Small       string        `help:"The small image, as deploy takes it." placeholder:"SOURCE"`
	Large       string        `help:"The large image: the small one and a big file." placeholder:"SOURCE"`
	Zip         string        `help:"The same function as a package." placeholder:"FILE" type:"path"`
	Runtime     string        `help:"Runtime of the package." default:"provided.al2023"`
	Command     []string      `help:"Replaces the images' Cmd." sep:"none" placeholder:"WORD"`
	Rows        []string      `help:"What to measure, in this order: small, large, large-memory, zip (all that have a source)." placeholder:"ROW,…"`
	Parallel    int           `help:"Events at once." default:"10" placeholder:"N"`
	Rounds      int           `help:"How often each row is measured, each time from nothing." default:"1" placeholder:"N"`
	Memory      int           `help:"Memory in MB." default:"128" placeholder:"MB"`
	LargeMemory int           `help:"Memory of large-memory in MB: as much of it as the worker has for all at once." default:"10240" placeholder:"MB"`
	Hold        time.Duration `help:"How long the handler sleeps, so that no instance gets two events; the function has to understand it, as the sample function does." default:"1s" placeholder:"TIME"`
	By          string        `help:"events: queued, as a bucket sends them; invokes: somebody waits for each." enum:"events,invokes" default:"events" placeholder:"WHAT"`
	Start       string        `help:"full: nothing is there, in no cache of this machine; partial: the image is mounted and slots are prepared." enum:"full,partial" default:"full" placeholder:"KIND"`
	Pinned      bool          `help:"Leave base images in the cache."`
	SVG         string        `name:"svg" help:"Draw the distributions of init and total." placeholder:"FILE" type:"path"`
	JSON        bool          `name:"json" help:"One JSON object."`
}

// Help teaches by example.
func (benchColdstartCmd) Help() string {
	return `Needs a platform with one worker, on this machine, that nobody else uses meanwhile. Before each row
its idle instances end, images are unmounted, its cache is emptied and the kernel's page cache is
dropped. TOTAL is from sending to the end of the invoke, hold included; PLATFORM is what of it is
neither init nor handler.

  thaw bench coldstart --small oci:./small --large oci:./large --parallel 50
  thaw bench coldstart --small oci:./small --zip f.zip --by invokes --svg cold.svg --json
  thaw bench coldstart --small oci:./small --rows small --start partial --parallel 1 --rounds 20`
}

// registryCmd keeps credentials of registries for those who deploy.
type registryCmd struct {
	Login  registryLoginCmd  `cmd:"" help:"Keep an account's credentials for a registry, sealed with its tenant's key."`
	List   registryListCmd   `cmd:"" help:"List registries that there are credentials for."`
	Logout registryLogoutCmd `cmd:"" help:"Forget credentials."`
}

type registryLoginCmd struct {
	Registry string `arg:"" help:"HOST or HOST:PORT, as images name it."`
	Username string `short:"u" help:"User." required:""`
	Account  string `help:"Account whose functions may use them (that of thaw up)." placeholder:"A"`
}

// Help teaches by example.
func (registryLoginCmd) Help() string {
	return `The password comes from standard input, so that it is in no history and no list of processes.

  pass registry | thaw registry login registry.example -u deployer`
}

type registryListCmd struct {
	Account string `help:"Account (that of thaw up)." placeholder:"A"`
}

type registryLogoutCmd struct {
	Registry string `arg:"" help:"HOST or HOST:PORT."`
	Account  string `help:"Account (that of thaw up)." placeholder:"A"`
}
