#!/usr/bin/env bash
# Makes a Debian 12 with Go ready for demo, tests and benchmarks: installs missing packages, builds the tools in bin/ and the corpus.
#
#   ./setup.sh [--no-corpus | --demo]
#
# With --demo only what the demo needs: four images of the corpus, and no tools. Says nothing and takes a second when there is nothing to do.
# Only root can install and build images; anybody else is told what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PATH=$PATH:/usr/sbin:/sbin

# A program that is used here, and the package that has it. Who uses it:
programs() {
    cat <<-END
	make        make            # this repository's commands
	mmdebstrap  mmdebstrap      # corpus: the base image
	buildah     buildah         # corpus: all others
	mount       mount           # corpus, tests
	e2fsck      e2fsprogs       # tests: e2fsck, debugfs, mkfs.ext4 as judges
	umoci       umoci           # tests, demo: a reference unpacking
	runc        runc            # demo: containers as others start them; tests, thaw run
	crun        crun            # thaw run: starts in half of runc's time
	setfattr    attr            # tests: extended attributes
	setfacl     acl             # tests: access control lists
	node        nodejs          # tests: a reader by the formats' page alone; demo: JSON
	zstd        zstd            # tests: archives
	casync      casync          # benchmarks: content-defined chunking
	fio         fio             # benchmarks: reads and writes of devices
	nft         nftables        # tests: the network's table, as others read it
	curl        curl            # tests: a client of what instances reach
	nginx       nginx           # benchmarks: a server of files, to compare nodes of the zone with
	aws         awscli          # tests, demo: a client of the function platform that everybody has
	skopeo      skopeo          # tests: pushes to the registry inside and pulls from it, as docker does
	curl        curl            # tests: a client without a library
	javac       default-jdk-headless # corpus: the sample function in Java
	END
}

say() { echo "setup: $*" >&2; }

missing() {
    local program package rest
    programs | while read -r program package rest; do
        command -v "$program" >/dev/null || echo "$package"
    done
    [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    [ -d /usr/lib/python3/dist-packages/boto3 ] || echo python3-boto3 # tests: a client with streams
}

# for_client prints the packages that corpus/build wants for one image alone, fn-node-ric. Where Node is not Debian's, its npm and headers
# cannot be installed; such a Node brings its own.
for_client() {
    [ -n "$corpus" ] && [ ${#images[@]} = 0 ] || return 0
    command -v g++ >/dev/null || echo g++
    [ -f /usr/include/node/node_api.h ] || echo libnode-dev
    command -v npm >/dev/null || echo npm # 361 packages, a minute
}

install_packages() {
    local packages more
    packages=$(missing | xargs) more=$(for_client | xargs)
    [ -n "$packages$more" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        say "MISSING PACKAGES: ${packages:+$packages }$more"
        say "what needs them will be skipped or fail; install them with: sudo ./setup.sh"
        return 0
    fi
    say "installing ${packages:+$packages }$more"
    export DEBIAN_FRONTEND=noninteractive
    # Package lists may be stale: fetch them, and do not fail on a source that is of no use here.
    apt-get update -qq </dev/null >/dev/null || true
    # shellcheck disable=SC2086 # one word each
    [ -z "$packages" ] || apt-get install -y -qq --no-install-recommends $packages </dev/null >/dev/null
    # shellcheck disable=SC2086 # one word each
    [ -z "$more" ] || apt-get install -y -qq --no-install-recommends $more </dev/null >/dev/null ||
        say "NOT INSTALLED: $more: AWS's client for Node may not be tested"
    # Benchmarks start it themselves, with files of their own: the service that its installation starts is nobody's.
    [[ " $packages " != *" nginx "* ]] || systemctl disable --now nginx >/dev/null 2>&1 || true
    packages=$(missing | xargs)
    [ -z "$packages" ] || { say "still missing after installation: $packages"; exit 1; }
}

# build_tools makes the programs that tests run against, from the tools module.
build_tools() {
    local sum
    sum=$({ cat tools/go.mod tools/go.sum && go version; } | sha256sum | cut -d' ' -f1)
    [ -x bin/versitygw ] && [ -x bin/gotestsum ] && [ -x bin/runsc ] && [ "$(cat bin/.tools 2>/dev/null)" = "$sum" ] && return
    if ! mkdir -p bin 2>/dev/null || [ ! -w bin ]; then
        say "CANNOT WRITE bin/: build the tools with: sudo ./setup.sh"
        return
    fi
    say "building bin/versitygw, an S3 server, bin/gotestsum, which runs tests, and bin/runsc, gVisor, which is large"
    mkdir -p bin/tools.tmp
    (cd tools && CGO_ENABLED=0 go build -trimpath -ldflags=-s -o ../bin/tools.tmp/ github.com/versity/versitygw/cmd/versitygw gotest.tools/gotestsum)
    (cd tools && CGO_ENABLED=0 go build -trimpath -ldflags=-s -o ../bin/tools.tmp/ gvisor.dev/gvisor/runsc) ||
        say "CANNOT BUILD bin/runsc: nothing will be tested under gVisor"
    mv bin/tools.tmp/* bin/
    rmdir bin/tools.tmp
    echo "$sum" >bin/.tools
}

corpus=1 tools=1 images=()
case ${1:-} in
"") ;;
--no-corpus) corpus="" ;;
--demo) tools="" images=(python node fn-go fn-node) ;;
*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
command -v go >/dev/null || { say "Go is missing: install the version that go.mod names, or newer"; exit 1; }
install_packages
[ -z "$tools" ] || build_tools & # beside the corpus: neither keeps two cores busy
[ -z "$corpus" ] || corpus/build "${images[@]}" || [ "$(id -u)" != 0 ] || corpus=failed
wait $!
[ "$corpus" != failed ]
