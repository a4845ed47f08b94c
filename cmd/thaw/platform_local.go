//go:build !cloud

package main

// Run is in the other build.
func (*upCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*envCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*deployCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*invokeCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*functionsCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*logsCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*deleteCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*coldstartsCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*eventsListCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*eventsReplayCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*eventsRemoveCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*keysCreateCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*keysListCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*keysRevokeCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*clusterServeCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*builderCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*frontendCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*managerCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*workerCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*clusterBackupCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*clusterRestoreCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*baseAddCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*baseListCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*baseRmCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*benchColdstartCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*registryLoginCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*registryListCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*registryLogoutCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*fleetListCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*fleetInviteCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*fleetJoinCmd) Run() error { return errOtherBuild }

// Run is in the other build.
func (*fleetLeaveCmd) Run() error { return errOtherBuild }
