// Package invokewire is what frontends, managers, workers and instances say to
// each other about invocations.
//
// # Between machines: HTTP/1.1
//
// All three roles listen on one address each, on loopback plainly, elsewhere over
// mutual TLS (package fleet). A request carries the fleet's token (HeaderToken);
// without it, it is refused with 403. Bodies are JSON unless said otherwise, errors {"error": "one line"}.
//
//	manager  POST /acquire               Acquire → 200 Lease, 429 Throttle, or 421 Misdirected
//	manager  POST /renew                 Renew → 200 Renewed
//	manager  POST /release               Release → 204
//	manager  GET  /state                 200 ManagerState
//	worker   POST /instances             Start → 202; 429 if no start is admitted; 409 if the id exists
//	worker   POST /instances/ID/invoke   headers below and the payload → 200 and the answer; 409 busy; 410 gone; 502 no such image, or not whole;
//	                                     504 HeaderDeadline passed before the function has seen it; 500 it cannot be started
//	worker   GET  /instances/ID/ready    204 once it has started; 410 gone; 502 and 500 as above; 422 the function has ended its sandbox
//	worker   DELETE /instances/ID        204 once it is gone; 409 while it works, unless ?force; with ?queued, 409 if its start has begun
//	worker   GET  /state                 200 WorkerState
//	worker   GET  /starts                200, the last starts with their stages
//	worker   POST /empty[?keep=images]   200 worker.Emptied: idle instances ended, and with them images and slots
//	worker   GET  /pins                  200 []Pin
//	worker   GET  /logs?account=A&function=F&stream=S&since=MS&until=MS&limit=N&follow   200, a LogEvent a line:
//	              the last N since a time; with until, the first, with all of the last one's millisecond, none later
//	worker   GET  /logs/streams?account=A&function=F    200 []LogStream
//
// An invoke's answer is streamed: 200 is sent as soon as the function has begun
// to answer, or has failed, and names the invoke by HeaderRequestID: what does not
// is no answer to it. What is known only at its end comes as trailers:
// HeaderFunctionError, HeaderFunctionErrorBody (base64 of the error's JSON, if
// the function failed after it had begun to answer), HeaderLogTail (base64 of
// the last 4 KiB of the log, ending with the REPORT line; only if it was asked
// for), HeaderBilled (likewise), HeaderStart, HeaderStream. A short answer without
// a log that has not failed has a length in their place. Together they fit into
// 16 KiB, the least that a client's ReadBufferSize must be. An answer that ends
// neither by its length nor by its last chunk is none: its worker has died.
// Without a log to wait for, the answer ends with the function's last byte,
// before the function has asked for its next invoke: one that comes meanwhile
// waits for that. A client that hangs up does not stop the function.
//
// # Inside a machine: frames
//
// See frame.go.
package invokewire

import (
	"fmt"
	"time"
)

// Headers of requests between the roles, and of answers to invokes.
const (
	HeaderToken         = "Thaw-Token"
	HeaderRequestID     = "Thaw-Request-Id"
	HeaderDeadline      = "Thaw-Deadline-Ms"    // when the caller gives up, ms since 1970; the worker sets the function's own by its timeout
	HeaderARN           = "Thaw-Invoked-Arn"    // as it was invoked, alias included
	HeaderTrace         = "Thaw-Trace-Id"       // X-Ray's, as it came
	HeaderClientContext = "Thaw-Client-Context" // base64 of JSON, as it came
	HeaderLogType       = "Thaw-Log-Type"       // Tail or empty
	HeaderStreaming     = "Thaw-Streaming"      // "1": the caller wants the answer as it comes
	HeaderFunctionError = "Thaw-Function-Error" // header or trailer: Unhandled; the body is the error's JSON
	HeaderErrorBody     = "Thaw-Error-Body"     // trailer
	HeaderLogTail       = "Thaw-Log-Tail"       // trailer
	HeaderBilled        = "Thaw-Billed-Ms"      // trailer
	HeaderStart         = "Thaw-Start"          // trailer: StartFull, StartPartial or StartWarm
	HeaderStream        = "Thaw-Log-Stream"     // trailer: the instance's log stream
	HeaderResponseType  = "Thaw-Response-Type"  // content type that the function gave its streamed answer
)

// How an invoke found its instance.
const (
	StartFull    = "full"    // nothing was prepared
	StartPartial = "partial" // a prepared slot was taken
	StartWarm    = "warm"    // an idle instance
)

// Reasons of throttling, as clients see them.
const (
	ReasonAccount  = "ConcurrentInvocationLimitExceeded"
	ReasonReserved = "ReservedFunctionConcurrentInvocationLimitExceeded"
	ReasonRate     = "FunctionInvocationRateLimitExceeded" // more new instances than the burst limit allows, or than workers admit
)

// LogPrefix begins the name of a function's log group, before the function's, unless
// it says otherwise: as CloudWatch Logs has it.
const LogPrefix = "/aws/lambda/"

// Spec is all that a worker needs to know of a function version to start its
// instances. It holds the function's variables, which are secret: it is never
// logged.
type Spec struct {
	Account  string // twelve digits
	Tenant   string // whose images these are in the origin
	Function string // name
	Version  string // "$LATEST" or a number
	ARN      string // of the function, unqualified
	Revision string // changes with code or configuration: instances of another revision of a version are old

	Image  string // image id
	Root   string // of the origin, that holds it
	Memory int    // MB
	Tmp    int    // MB
	// Timeout of one invoke, and of an init that is run again within one.
	Timeout time.Duration

	Env        map[string]string `json:",omitempty"`
	Entrypoint []string          `json:",omitempty"` // replaces the image's
	Command    []string          `json:",omitempty"` // replaces the image's
	Workdir    string            `json:",omitempty"` // replaces the image's
	Handler    string            `json:",omitempty"` // _HANDLER: of zip packages
	Runtime    string            `json:",omitempty"` // AWS_EXECUTION_ENV of zip packages: "python3.13"
	Egress     bool              `json:",omitempty"` // has a network
	LogGroup   string
	LogJSON    bool `json:",omitempty"`

	// Reserved is the function's own share of concurrent executions; nil: none.
	Reserved *int `json:",omitempty"`
	// Keys are short-lived ones of the function's tenant.
	Keys Keys
	// Region and Endpoint are for AWS_REGION and AWS_ENDPOINT_URL; an empty
	// endpoint sets none.
	Region, Endpoint string
}

// Keys sign requests.
type Keys struct{ ID, Secret, Token string }

// Key names a version in one state: instances of equal keys are alike.
func (s *Spec) Key() string { return s.Account + "/" + s.Function + "/" + s.Version + "/" + s.Revision }

// Format hides what is secret from every verb.
func (s Spec) Format(f fmt.State, _ rune) { fmt.Fprint(f, "invokewire.Spec{"+s.Key()+"}") }

// Acquire asks a manager for an instance: an idle one, or one to be started.
type Acquire struct {
	// Frontend asks, and will renew: name#process. A new process of a name has
	// nothing of what the last one held.
	Frontend string
	Spec     Spec
	// Avoid are instances that have just been found busy or gone.
	Avoid []string `json:",omitempty"`
	// Failed are starts that were granted before, for this same request, and that
	// came to nothing in the platform: their workers are not asked for it again.
	Failed []Lease `json:",omitempty"`
	// Force is passed on, if an instance has to be started: see Start.
	Force string `json:",omitempty"`
}

// Misdirected names the manager that owns the function.
type Misdirected struct{ Owner string } // id, as in managers/ID

// Lease is the right to give an instance one invoke at a time, until TTL has
// passed since it was granted or renewed.
type Lease struct {
	Instance string // id, unique in the fleet
	Worker   string // host:port
	Fresh    bool   // it is being started for this lease
	TTL      time.Duration
}

// Throttle says why there is no instance.
type Throttle struct {
	Reason     string
	RetryAfter time.Duration
}

// Error makes a Throttle an error.
func (t *Throttle) Error() string { return "throttled: " + t.Reason }

// Renew keeps leases.
type Renew struct {
	Frontend  string
	Instances []string
}

// Renewed tells which leases have ended: those instances are not to be used.
type Renewed struct{ Gone []string }

// Release gives leases back: the instances are idle.
type Release struct {
	Frontend  string
	Instances []string
	// Gone are those that their worker no longer has.
	Gone []string `json:",omitempty"`
}

// Start has a worker start an instance.
type Start struct {
	ID   string
	Spec Spec
	// Force is StartFull or StartPartial, for experiments; else empty.
	Force string `json:",omitempty"`
}

// Phases of an instance.
const (
	PhaseQueued = "queued" // admitted, and waits for its turn to start
	PhaseInit   = "init"
	PhaseIdle   = "idle"
	PhaseBusy   = "busy"
	PhaseEnding = "ending"
)

// InstanceState is one instance as its worker has it.
type InstanceState struct {
	ID, Key   string
	Account   string
	Function  string
	Version   string
	Phase     string
	Memory    int       // MB
	Asked     time.Time // when its start was asked for: its keys are as old
	Since     time.Time // of the phase
	Invokes   uint64
	LogStream string
}

// WorkerState is what a worker says of itself; it registers the same, without
// instances, in the cluster's memory.
type WorkerState struct {
	ID      string
	Address string // host:port
	Started time.Time
	Cores   int
	Memory  int64 // bytes that instances may take
	Used    int64 // bytes measured
	// Disk is how many bytes instances' /tmp and logs may take on disk, and DiskUsed
	// what they take.
	Disk, DiskUsed int64
	Queued         int // starts that wait
	Running        int // starts that run
	Slots          int // that are prepared
	// Draining: it admits nothing more.
	Draining  bool
	Instances []InstanceState   `json:",omitempty"`
	Starts    map[string]uint64 `json:",omitempty"` // by StartFull …
}

// Pin is a base image that a worker keeps in its cache.
type Pin struct {
	Name, Image string
	Pinned      int64  // bytes that stay in the cache; chunks that bases share count once
	Left        int64  // bytes that do not fit into what the worker has for bases
	Missing     int    // chunks of the pinned that have not come yet
	Error       string `json:",omitempty"` // why not: it is tried again
}

// ManagerState is what a manager knows.
type ManagerState struct {
	ID      string
	Workers []WorkerState
	Leases  int
	// Counts of what was decided since its start: instances reused, started and
	// evicted, starts refused by workers, requests throttled.
	Counts map[string]uint64
}

// LogEvent is a line of a log.
type LogEvent struct {
	Time    int64  // ms since 1970
	Stream  string // log stream name
	Message string // without line end
}

// LogStream is one instance's log.
type LogStream struct {
	Name                 string
	Created, First, Last int64 // ms since 1970; 0: no event
	Bytes                int64
}
