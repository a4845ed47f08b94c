package frontend

import (
	"time"

	"thaw/functions"
	"thaw/invokewire"
)

// specOf says how instances of a version that has been built are started. Tenant,
// Keys, Endpoint, Env and Egress are the frontend's to add.
func specOf(f *functions.Function, v *functions.Version, region string) invokewire.Spec {
	return invokewire.Spec{
		Account: f.Account, Function: f.Name, Version: v.Number, ARN: f.ARN(region, ""), Revision: v.Revision,
		Image: v.Package.Image, Root: v.Package.Root, Memory: v.Memory, Tmp: v.Tmp, Timeout: time.Duration(v.Timeout) * time.Second,
		Entrypoint: v.Entrypoint, Command: v.Command, Workdir: v.Workdir, Handler: v.Handler, Runtime: v.Runtime,
		LogGroup: v.LogGroup, LogJSON: v.LogFormat == "JSON", Reserved: f.Reserved, Region: region,
	}
}

// The account that there is without any being made, and its tenant in the origin.
const (
	defaultAccount = "000000000000"
	defaultTenant  = "default"
)
