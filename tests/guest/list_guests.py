"""Print each guest of guests.cfg as a line: name and sources, for the build."""
import configparser
import sys

guests = configparser.ConfigParser()
guests.read(sys.argv[1])
for name in guests.sections():
    print(name, *guests[name]["sources"].split())
